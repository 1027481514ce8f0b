"""No task of the server ends unnoticed: each is killed here by an exception."""

from __future__ import annotations

import ast
import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.types import Message

import deepinfer
from deepinfer import tasks
from deepinfer.engine import EngineOptions
from deepinfer.runtime.client import EngineClient
from deepinfer.runtime.supervisor import EngineSupervisor
from deepinfer.server.disconnect import CancelOnDisconnect
from deepinfer.server.event_stream import open_stream
from deepinfer.server.generate import Delta
from deepinfer.server.record import DIRECT_SEND_KEY, RECORD_KEY, RequestRecord
from deepinfer.server.sse import DONE
from tests.runtime.running import collect, pid_of, request, running, until
from tests.server.sources import PlainWriter, ScriptedSource

PACKAGE = Path(deepinfer.__file__).parent
COUNTING = {"counts": True, "step_us": 5_000}
# Whoever has made these waits for them, and so meets whatever they raise.
AWAITED = {
    "server/event_stream.py": 1,  # the first tokens
    "server/lifetime.py": 5,
}


class Fault(Exception):
    pass


def test_every_task_of_server_and_runtime_reports_its_end_or_is_awaited() -> None:
    found: dict[str, int] = {}
    for path in sorted([*PACKAGE.glob("server/**/*.py"), *PACKAGE.glob("runtime/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in ("create_task", "ensure_future"):
                    name = str(path.relative_to(PACKAGE))
                    found[name] = found.get(name, 0) + 1
    assert found == AWAITED, "start others with deepinfer.tasks, and kill them in this file"


def supervisor_of(client: EngineClient) -> EngineSupervisor:
    assert isinstance(client.supervisor, EngineSupervisor)
    return client.supervisor


def failing_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, times: int = 1) -> None:
    """Have a method raise for the next `times` calls."""
    method, faults = getattr(owner, name), iter([Fault(name)] * times)

    def fail(*arguments: Any) -> Any:
        for fault in faults:
            raise fault
        return method(*arguments)

    monkeypatch.setattr(owner, name, fail)


async def test_watchdog_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = EngineOptions(hang_timeout_s=0.5)
    async with running(tmp_path, options, settings=COUNTING) as client:
        failing_once(monkeypatch, supervisor_of(client)._watchdog, "_find_activity")
        answer = asyncio.create_task(collect(client, request("a", (5,), 50, ignore_eos=True)))
        await until(lambda: client.load.num_running == 1)
        pid = pid_of(client)
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        assert len((await answer)["a"].token_ids) == 50
        assert client.num_restarts == 1
    assert "the engine's watchdog failed" in caplog.text


@pytest.mark.parametrize("method", ["_on_exit", "_spawn"])
async def test_supervisor_starts_the_engine_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    async with running(tmp_path, settings=COUNTING) as client:
        failing_once(monkeypatch, supervisor_of(client)._launcher, method, times=2)
        answer = asyncio.create_task(collect(client, request("a", (5,), 50, ignore_eos=True)))
        await until(lambda: client.load.num_running == 1)
        pid = pid_of(client)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert len((await answer)["a"].token_ids) == 50
        assert client.num_restarts == 1
    assert method in caplog.text


async def test_stream_goes_on_without_its_pings(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[bytes] = []
    has_failed = asyncio.Event()

    async def send_event(message: Message) -> None:
        if message["body"].startswith(b":"):
            has_failed.set()
            raise Fault("ping")
        sent.append(message["body"])

    async def send(message: Message) -> None:
        if body := message.get("body"):
            sent.append(body)

    source = ScriptedSource([Delta(0, "1", None)], has_failed.wait, [Delta(0, "2", None)])
    stream = await open_stream(source, PlainWriter(), 10)
    stream._ping_interval_s = 0.01
    scope = {"type": "http", RECORD_KEY: RequestRecord("r"), DIRECT_SEND_KEY: send_event}
    await asyncio.wait_for(stream(scope, cast(Any, None), send), 10)
    assert sent == [b"1", b"2", DONE]
    assert "the pings of a stream failed" in caplog.text


async def test_watch_for_a_client_that_leaves_is_missed_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    has_failed = asyncio.Event()
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        for message in messages:
            return message
        has_failed.set()
        raise Fault("receive")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await has_failed.wait()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    scope = {"type": "http", RECORD_KEY: RequestRecord("r")}
    await CancelOnDisconnect(app)(scope, receive, cast(Any, None))
    assert "the watch for a client that leaves failed" in caplog.text


async def test_work_that_fails_is_begun_again_until_it_returns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = iter([Fault("first"), Fault("second")])

    async def work() -> None:
        for fault in faults:
            raise fault

    await asyncio.wait_for(tasks.keep_running("work", work), 10)
    assert caplog.text.count("work failed") == 2


async def test_task_that_fails_says_so_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise Fault("unforeseen")

    task = tasks.start(fail(), "a task")
    await asyncio.wait((task,))
    await asyncio.sleep(0)
    assert "a task failed" in caplog.text and "unforeseen" in caplog.text
    assert caplog.records[-1].levelno == logging.ERROR
