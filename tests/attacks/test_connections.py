"""Connections to an engine that end, and engines that speak before anybody expects it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deepinfer.engine import Capacity, EngineOptions, Load
from deepinfer.errors import InvalidValue
from deepinfer.generation import FinishReason, Grammar, TokenChunk
from deepinfer.runtime import wire
from deepinfer.runtime.client import EngineClient
from deepinfer.runtime.supervisor import EngineProcessState, SupervisedClient
from tests.engines import make_simulated_engine
from tests.runtime.running import collect, pid_of, raises_soon, request, running, until

NUM_RECONNECTIONS = 100
COUNTING = {"counts": True, "step_us": 5_000}


class ForeignSupervisor:
    """Of an engine that somebody else starts; it knows nothing of its processes."""

    state = EngineProcessState(1)

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    async def start(self, client: SupervisedClient) -> None: ...

    async def close(self) -> None: ...


@contextmanager
def quick_engine(path: Path, num_resubmissions: int, *, same_pid: bool) -> Iterator[list[int]]:
    """A socket that says Ready with the first byte, and ends each life after one token.

    Yields what grows with the number of submissions of each life.
    """
    submissions: list[int] = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def live(life: int) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(
                wire.encode(wire.Ready(Capacity(8, 100, 32), 0, 1 if same_pid else life + 1))
            )
            reader = wire.FrameReader()
            while data := connection.recv(1 << 16):
                for body in reader.feed(data):
                    message = wire.decode_to_engine(body)
                    if not isinstance(message, wire.Submit):
                        continue
                    submissions.append(life)
                    name = message.requests[0].request_id
                    is_last = life == num_resubmissions - 1
                    reason = FinishReason.LENGTH if is_last else None
                    connection.sendall(
                        wire.encode(wire.Admitted((name,)))
                        + wire.encode(wire.Step((TokenChunk(name, (life,), reason),), Load(1)))
                    )
                    if not is_last:
                        return

    def serve() -> None:
        for life in range(num_resubmissions):
            live(life)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield submissions
    finally:
        listener.close()


@pytest.mark.parametrize("same_pid", [False, True], ids=["deaths", "lost connections"])
async def test_engine_that_is_ready_at_once_gets_every_request_again(
    tmp_path: Path, same_pid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepinfer.runtime.client.SHORT_CONNECTION_S", 0.0)
    engine = make_simulated_engine(tmp_path / "engine")
    path = tmp_path / "engine.sock"
    with quick_engine(path, NUM_RECONNECTIONS, same_pid=same_pid) as submissions:
        client = EngineClient(engine, EngineOptions(), ForeignSupervisor(path))
        await client.start()
        try:
            answer = await asyncio.wait_for(
                _ask_when_ready(client, max_tokens=NUM_RECONNECTIONS), 30
            )
        finally:
            await client.close(timeout_s=0)
    assert answer == tuple(range(NUM_RECONNECTIONS))
    assert submissions == list(range(NUM_RECONNECTIONS))


async def _ask_when_ready(client: EngineClient, max_tokens: int) -> tuple[int, ...]:
    await client.wait_ready()
    asked = request("a", (5,), max_tokens, ignore_eos=True)
    return (await collect(client, asked))["a"].token_ids


async def test_lost_connection_is_not_held_against_a_request(tmp_path: Path) -> None:
    options = EngineOptions(resume_attempts=1)
    async with running(tmp_path, options, settings=COUNTING) as client:
        pid = pid_of(client)
        answer = asyncio.create_task(collect(client, request("a", (5,), 200, ignore_eos=True)))
        for _ in range(5):
            await until(lambda: client.load.num_running == 1)
            ready = client.num_ready
            assert client._connection is not None and client._connection._transport is not None
            client._connection._transport.abort()
            await until(lambda ready=ready: client.num_ready > ready)  # type: ignore[misc]
        assert len((await answer)["a"].token_ids) == 200
        assert pid_of(client) == pid and client.num_restarts == 0


async def test_message_that_cannot_be_read_ends_the_connection_and_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, settings=COUNTING) as client:
        answer = asyncio.create_task(collect(client, request("a", (5,), 60, ignore_eos=True)))
        await until(lambda: client.load.num_running == 1)
        faults = iter([RuntimeError("no message")])
        deliver: Callable[[wire.Step], None] = client._dispatcher.on_step

        def stumble(message: wire.Step) -> None:
            for fault in faults:
                raise fault
            deliver(message)

        monkeypatch.setattr(client._dispatcher, "on_step", stumble)
        assert len((await answer)["a"].token_ids) == 60
        assert client.num_restarts == 0 and client.num_ready == 2


async def test_connection_that_cannot_be_made_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, settings=COUNTING) as client:
        answer = asyncio.create_task(collect(client, request("a", (5,), 60, ignore_eos=True)))
        await until(lambda: client.load.num_running == 1)
        connect, faults = client._connect, iter([OSError(24, "Too many open files")] * 3)

        async def fail_first() -> None:
            for fault in faults:
                raise fault
            await connect()

        monkeypatch.setattr(client, "_connect", fail_first)
        pid = pid_of(client)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert len((await answer)["a"].token_ids) == 60


def test_choices_of_a_request_carry_one_copy_of_their_grammar() -> None:
    grammar = Grammar("ebnf", "x" * 500_000)
    asked = [request(str(i), grammar=grammar) for i in range(128)]
    frame = wire.encode(wire.Submit.make(asked))
    assert len(frame) < 1.1 * 500_000
    message = wire.decode_to_engine(frame[wire.HEADER.size :])
    assert isinstance(message, wire.Submit)
    assert message.whole_requests == tuple(asked)
    assert all(r.sampling.grammar is message.grammar for r in message.whole_requests)


def test_grammars_that_differ_go_along_with_each_request() -> None:
    asked = [request("a", grammar=Grammar("regex", "a")), request("b")]
    assert wire.Submit.make(asked).whole_requests == tuple(asked)


async def test_what_exceeds_the_wire_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async with running(tmp_path, settings=COUNTING) as client:
        victim = asyncio.create_task(collect(client, request("v", (5,), 100, ignore_eos=True)))
        await until(lambda: client.load.num_running == 1)
        grammar = Grammar("ebnf", "x" * wire.MAX_FRAME_BYTES, param="guided_grammar")
        for _ in range(3):
            error = await raises_soon(InvalidValue, collect(client, request("a", grammar=grammar)))
            assert isinstance(error, InvalidValue) and error.param == "guided_grammar"
        assert len((await victim)["v"].token_ids) == 100
        assert client.num_ready == 1 and client.num_in_flight == 0


async def test_scores_that_exceed_the_wire_end_their_own_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A frame of the real bound takes a prompt of millions of tokens; the rule is the same.
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "sitecustomize.py").write_text(
        "import deepinfer.runtime.wire as wire\nwire.MAX_FRAME_BYTES = 30_000\n"
    )
    async with running(tmp_path / "engine", settings=COUNTING, max_seq_len=4096) as client:
        victim = asyncio.create_task(collect(client, request("v", (5,), 200, ignore_eos=True)))
        await until(lambda: client.load.num_running == 1)
        long = tuple(range(5, 400)) * 7
        scored = {"num_log_probs": 5, "with_prompt_log_probs": True}
        ended = await collect(client, request("a", long, 4, **scored))
        assert ended["a"].finish_reason is FinishReason.ERROR and ended["a"].message
        many = [request(str(i), long[:1000], 4, ignore_eos=True, **scored) for i in range(4)]
        for chunk in (await collect(client, *many)).values():
            assert chunk.finish_reason is FinishReason.LENGTH
        assert len((await victim)["v"].token_ids) == 200
        assert client.num_ready == 1
