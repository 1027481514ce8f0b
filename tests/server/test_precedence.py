"""Where a CPU computes, the API process pushes no thread of an engine aside."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from pathlib import Path

import psutil
import pytest

from tests.server.serving import client_of, make_echo_engine, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="policies of Linux")


def policies(pid: int) -> dict[str, set[int]]:
    """Of a process and all below it, by what runs in each."""
    found: dict[str, set[int]] = defaultdict(set)
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        command = " ".join(process.cmdline())
        modules = [name for name in ("runtime.engine_process",) if name in command]
        found[modules[0] if modules else "serve"].add(os.sched_getscheduler(process.pid))
    return found


def test_api_process_gives_way_and_its_engine_does_not(tmp_path: Path) -> None:
    make_echo_engine(tmp_path / "echo")
    with serving(tmp_path) as server, client_of(server) as client:
        expected = {"serve": {os.SCHED_BATCH}, "runtime.engine_process": {os.SCHED_OTHER}}
        assert policies(server.pid) == expected
        # What it does in threads gives way as well, and still gets done.
        body = {"prompt": "a " * 40_000, "max_tokens": 1}
        assert client.post("/v1/completions", json=body).status_code == 400
