"""The servers that `growth.py` measures, with what their processes take of the machine."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from served import Server

sys.path.insert(0, str(Path(__file__).parents[1]))

MAX_CONTEXT = 200_000  # tokens; one answer lasts longer than any queue takes to fill
QUIET = ("--log-level", "warning")


@dataclass(frozen=True)
class Usage:
    """What the API process and its engines have taken so far."""

    api_cpu_s: float
    engine_cpu_s: float
    api_bytes: int
    engine_bytes: int


class MeteredServer(Server):
    def read_usage(self) -> Usage:
        engines = self.process.children()
        return Usage(
            api_cpu_s=_cpu_s(self.process),
            engine_cpu_s=sum(map(_cpu_s, engines)),
            api_bytes=self.process.memory_info().rss,
            engine_bytes=sum(engine.memory_info().rss for engine in engines),
        )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[MeteredServer]:
    server = MeteredServer(folder, *options, *QUIET)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def serving_simulated(
    *options: str, num_engines: int = 1, slots: int = 256, step_us: int = 0
) -> Iterator[MeteredServer]:
    from tests.server.serving import make_echo_engine
    from tests.text import samples

    # Text that shows with every token: a prompt that is repeated has special tokens in it, and what
    # they leave out would look like a delay.
    script = " ".join(map(str, samples.byte_level().encode("once upon a time").ids))
    with tempfile.TemporaryDirectory() as name:
        for number in range(num_engines):
            make_echo_engine(
                Path(name) / f"echo{number}",
                name=f"echo{number}",
                model_id=f"growth/echo{number}",
                max_batch_size=slots,
                max_seq_len=MAX_CONTEXT,
                step_us=step_us,
                script=script,
            )
        with serving(Path(name), *options) as server:
            yield server
