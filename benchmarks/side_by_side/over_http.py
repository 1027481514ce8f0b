"""A contender with a server, measured by the client of `deepinfer bench serve`.

What a server does differently (its tokens are counted by events, say) is found out by the client
itself when it gets to know it.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.side_by_side.child import Child, ChildOwner, find_port
from benchmarks.side_by_side.contender import Load, Measured, Model, Unavailable
from deepinfer.bench.client import BenchClient, ConnectionClosed, parse_url
from deepinfer.bench.load import run_async, run_shares
from deepinfer.bench.report import Summary, summarize
from deepinfer.bench.serve import ServeOptions, ServerInfo, make_plan, probe_server
from deepinfer.errors import BenchError

LOAD_TIMEOUT_S = 600.0  # a peer compiles its model when it first meets it
ANSWER_TIMEOUT_S = 300.0
POLL_S = 0.2


class HttpContender(ChildOwner):
    """Subclasses say what they are called and which command serves a model."""

    name = ""
    precision = ""
    note = ""
    ignores_eos = True
    ready_path = "/health"

    def __init__(self, logs: Path) -> None:
        self._log = logs / f"{self.name}.log"
        self._server_info: ServerInfo | None = None

    @property
    def version(self) -> str:
        raise NotImplementedError

    def prepare(self, model: Model) -> None:
        """Nothing, where it is a part of this project's own environment."""

    def command(self, model: Model, port: int) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def start(self, model: Model) -> None:
        url = self.serve(model)
        target = msgspec.structs.replace(parse_url(url), ignores_eos=self.ignores_eos)
        try:
            self._server_info = run_async(probe_server(target, needs_ids=False))
        except BenchError as error:
            raise Unavailable(error.message) from error

    def measure(self, load: Load) -> Measured:
        """All prompts at once, each on a connection of its own, read as they stream."""
        summary = self.answer(load, load.streams)
        num_events = round(summary.events_per_s * summary.elapsed_s)
        return Measured(summary.num_output_tokens or 0, summary.elapsed_s, num_events)

    def answer(self, load: Load, num_requests: int) -> Summary:
        """What a client sees of `num_requests`, as many at once as the load has streams."""
        assert self._server_info is not None, "it is started"
        with TemporaryDirectory() as folder:
            dataset = Path(folder) / "prompts.jsonl"
            write_dataset(dataset, load)
            options = ServeOptions(
                concurrency=load.streams,
                rate_per_s=None,
                num_requests=num_requests,
                dataset=dataset,
                timeout_s=ANSWER_TIMEOUT_S,
            )
            [result] = run_shares(
                make_plan(self._server_info, options, load.number), num_processes=1
            )
        summary = summarize(result.requests, result.ended_at - result.started_at)
        if summary.errors:
            raise Unavailable(f"{self.name} failed: {', '.join(summary.errors)}")
        return summary

    @property
    def pid(self) -> int:
        assert self._child is not None, "it is started"
        return self._child.pid

    @property
    def log(self) -> str:
        assert self._child is not None, "it is started"
        return self._child.log

    def serve(self, model: Model) -> str:
        """Its URL, once it is ready. Raises Unavailable with its last words."""
        port = find_port()
        url = f"http://127.0.0.1:{port}"
        self._child = Child(self.command(model, port), self._log, environment=self.environment())
        client = BenchClient(parse_url(url), timeout_s=10)
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while self._child.is_running and time.monotonic() < deadline:
            if run_async(_answers(client, self.ready_path)):
                return url
            time.sleep(POLL_S)
        raise Unavailable(f"did not start: {self._child.last_words}")


async def _answers(client: BenchClient, path: str) -> bool:
    try:
        status, _ = await client.fetch("GET", path)
    except (OSError, TimeoutError, ConnectionClosed):
        return False
    return status == 200


def write_dataset(path: Path, load: Load) -> None:
    """The load's prompts as `--dataset` reads them."""
    lines = [
        msgspec.json.encode({"prompt": prompt, "output_tokens": load.output_tokens})
        for prompt in load.prompts
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
