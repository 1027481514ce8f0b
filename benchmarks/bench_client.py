"""What the client of `deepinfer bench serve` can take: events a second of one of its processes.

    .venv/bin/python benchmarks/bench_client.py

The server is no server: a process that answers every request with events made beforehand, one
write each, taking turns among the streams. It does so as fast as the client reads, when several
events come together, and in rounds of 5 ms as an engine steps, when each wakes the client by
itself. Client and server have a core each at best, so besides the rate that was seen it prints the
rate for each second of CPU that the client took, which is what one process can take when nothing
holds it back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import socket
import subprocess
import sys
from collections import deque
from statistics import median

from deepinfer.bench.client import parse_url
from deepinfer.bench.prompts import parse_lengths
from deepinfer.bench.serve import ServeOptions, run_serve
from deepinfer.device import read_machine

TEXT = " word"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(usage: dict[str, int] | None, text: str = TEXT) -> bytes:
    fields = {
        "id": "cmpl-" + "0" * 32,
        "object": "text_completion",
        "created": 1_700_000_000,
        "model": "bench",
        "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": None}],
        "usage": usage,
    }
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


EVENT = chunk(event(None))


class Source(asyncio.Protocol):
    """One connection; every turn of the loop it is given writes one event."""

    def __init__(self, ready: deque[Source]) -> None:
        self.ready = ready
        self.left = 0
        self.is_writable = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        transport.set_write_buffer_limits(high=64 * 1024)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        head, _, body = data.partition(b"\r\n\r\n")
        if head.startswith(b"GET /v1/models"):
            return self.answer(b'{"data":[{"id":"bench"}]}')
        if not head.startswith(b"POST /v1/completions"):
            return self.answer(b"{}")
        fields = json.loads(body)
        if not fields["stream"] or fields["max_tokens"] < 16:
            usage = {"prompt_tokens": 10, "completion_tokens": 1}
            return self.answer(json.dumps({"choices": [], "usage": usage}).encode())
        self.transport.write(HEAD)
        self.left = self.total = fields["max_tokens"]
        self.ready.append(self)
        return None

    def answer(self, body: bytes) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True

    def step(self) -> None:
        if not self.is_writable:
            return
        self.transport.write(EVENT)
        self.left -= 1
        if not self.left:
            usage = event({"prompt_tokens": 10, "completion_tokens": self.total}, "")
            self.transport.write(chunk(usage) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


async def serve_events(round_s: float) -> None:
    ready: deque[Source] = deque()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Source(ready), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    due_at = loop.time()
    while True:
        for _ in range(len(ready)):
            source = ready.popleft()
            source.step()
            if source.left and not source.transport.is_closing():
                ready.append(source)
        due_at = max(due_at + round_s, loop.time() - 10 * round_s)
        await asyncio.sleep(max(due_at - loop.time(), 0.0) if ready else 0.001)


def measure(port: int, streams: int, tokens: int, requests: int) -> tuple[float, float]:
    """Events a second, as seen and for each second of the client's CPU."""
    options = ServeOptions(
        concurrency=streams,
        rate_per_s=None,
        num_requests=requests,
        num_warm_up=streams,
        input_lengths=parse_lengths("16"),
        output_lengths=parse_lengths(str(tokens)),
    )
    (run,) = run_serve(parse_url(f"http://127.0.0.1:{port}"), [options]).runs
    summary = run.summary
    assert summary.num_ok == requests and summary.tokens_per_event == 1, summary
    return summary.events_per_s, summary.events_per_s / run.client_cpu_share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--rounds-ms", type=float, nargs="+", default=[0, 5])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    cpu = read_machine().cpu
    print(f"{cpu.name}, {cpu.num_threads} CPUs, Python {platform.python_version()}")
    print(f"median of {arguments.repetitions}\n")
    print("| rounds | streams | events/s seen | events/s for each CPU second of the client |")
    print("|---|---|---|---|")
    for round_ms in arguments.rounds_ms:
        measure_rounds(round_ms, arguments)


def measure_rounds(round_ms: float, arguments: argparse.Namespace) -> None:
    command = [sys.executable, __file__, "--serve", str(round_ms / 1000)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        for streams in arguments.streams:
            rates = [
                measure(port, streams, arguments.tokens, max(4 * streams, 256))
                for _ in range(arguments.repetitions)
            ]
            seen, possible = (median(rate[i] for rate in rates) for i in (0, 1))
            rounds = f"{round_ms:g} ms" if round_ms else "none"
            print(f"| {rounds} | {streams} | {seen:,.0f} | {possible:,.0f} |", flush=True)
        server.terminate()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_events(float(sys.argv[2])))
    else:
        main()
