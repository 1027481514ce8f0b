"""Compiles in a child process: `python -m deepinfer.compiler.compile_process`.

TensorRT-LLM is native code that can abort, crash or be killed for lack of memory, logs past
Python, and fixes the environment of its worker processes when it is imported. In a process of its
own none of that ends `deepinfer build`, and all of its output lands in the build's log. The child
reports its phases, and how it ended, as one JSON object per line on a pipe.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from deepinfer import errors, logs, process
from deepinfer.checkpoint import Checkpoint, read_checkpoint
from deepinfer.compiler.build_log import TRACEBACK_MARK, BuildLog
from deepinfer.compiler.failures import UnexpectedBuildError, describe_death, errors_translated
from deepinfer.compiler.plan_types import BuildPlan
from deepinfer.compiler.progress import Progress
from deepinfer.errors import CommandError

EXIT_TIMEOUT_S = 30.0  # for the child to end by itself after it has reported its end
STOP_TIMEOUT_S = 5.0  # for the child to end after SIGTERM


class Job(msgspec.Struct, frozen=True):
    """What the child reads from its standard input."""

    plan: str  # BuildPlan as JSON
    checkpoint_folder: str
    model_id: str
    revision: str | None
    folder: str  # empty, for payload and tokenizer


class PhaseStarted(msgspec.Struct, frozen=True, tag=True):
    name: str
    detail: str


class PhaseEnded(msgspec.Struct, frozen=True, tag=True):
    pass


class Line(msgspec.Struct, frozen=True, tag=True):
    text: str


class Advanced(msgspec.Struct, frozen=True, tag=True):
    num_bytes: int
    total_bytes: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    error: str  # the name of a class of errors.py; empty for an unexpected one
    message: str
    hint: str | None


class Done(msgspec.Struct, frozen=True, tag=True):
    peak_memory_bytes: int


Event = PhaseStarted | PhaseEnded | Line | Advanced | Failed | Done


def compile_in_child(
    plan: BuildPlan, checkpoint: Checkpoint, folder: Path, progress: Progress, log: BuildLog
) -> int:
    """Write `payload/` and `tokenizer/` into the empty `folder`.

    Returns the most memory that the child held, in bytes. Raises what the compiler raises, and
    UnexpectedBuildError when the child dies; the child never outlives this call.
    """
    job = Job(
        plan=plan.model_dump_json(),
        checkpoint_folder=str(checkpoint.folder),
        model_id=checkpoint.id,
        revision=checkpoint.revision,
        folder=str(folder),
    )
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as events, log.path.open("ab") as output:
        try:
            child = subprocess.Popen(
                [sys.executable, "-u", "-m", "deepinfer.compiler.compile_process", str(write_end)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(write_end,),
            )
        finally:
            os.close(write_end)
        try:
            assert child.stdin is not None
            with suppress(BrokenPipeError):  # a child that is dead already is noticed below
                child.stdin.write(msgspec.json.encode(job))
                child.stdin.close()
            try:
                done = _follow(events, progress)
            except EOFError:
                raise describe_death(plan.name, child.wait()) from None
            with suppress(subprocess.TimeoutExpired):  # a library can hang in what it runs at exit
                child.wait(EXIT_TIMEOUT_S)
        finally:
            _stop(child)
    return done.peak_memory_bytes


def _follow(events: Iterable[bytes], progress: Progress) -> Done:
    """Show the child's phases until it is done. Raises what it failed with, or EOFError."""
    with ExitStack() as phase:  # an error leaves the running phase without reporting it as done
        for line in events:
            event = msgspec.json.decode(line, type=Event)
            match event:
                case PhaseStarted():
                    phase.enter_context(progress.phase(event.name, event.detail))
                case PhaseEnded():
                    phase.close()
                case Line():
                    progress.write(event.text)
                case Advanced():
                    progress.advance(event.num_bytes, event.total_bytes)
                case Failed():
                    kind = getattr(errors, event.error, UnexpectedBuildError)
                    raise kind(event.message, hint=event.hint)
                case Done():
                    return event
        raise EOFError


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(STOP_TIMEOUT_S)
    if child.poll() is None:
        child.kill()
        child.wait()


class _EventProgress(Progress):
    """Phases as events for the parent, which draws them."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def close(self) -> None:
        if self._descriptor >= 0:  # called twice in a process that is forked twice
            os.close(self._descriptor)
            self._descriptor = -1

    def send(self, event: Event) -> None:
        os.write(self._descriptor, msgspec.json.encode(event) + b"\n")

    @contextmanager
    def phase(self, name: str, detail: str) -> Iterator[None]:
        self.send(PhaseStarted(name, detail))
        yield
        self.send(PhaseEnded())

    def advance(self, num_bytes: int, total_bytes: int) -> None:
        self.send(Advanced(num_bytes, total_bytes))

    def write(self, line: str) -> None:
        self.send(Line(line))


def main() -> int:
    from deepinfer.compiler.build import load_compiler, measure_peak_memory

    process.end_with_parent()
    descriptor = int(sys.argv[1])
    # Workers of the library, started or forked, must not hold it open: its end says that this
    # process has ended.
    os.set_inheritable(descriptor, False)
    logs.configure("info")
    progress = _EventProgress(descriptor)
    os.register_at_fork(after_in_child=progress.close)
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    plan = BuildPlan.model_validate_json(job.plan)
    folder = Path(job.folder)
    try:
        with errors_translated(plan.name, folder.parent):
            checkpoint = read_checkpoint(
                Path(job.checkpoint_folder), model_id=job.model_id, revision=job.revision
            )
            load_compiler(plan).compile_checkpoint(plan, checkpoint, folder, progress)
    except CommandError as error:
        print(f"\n{TRACEBACK_MARK}", file=sys.stderr)
        traceback.print_exc()
        kind = "" if isinstance(error, UnexpectedBuildError) else type(error).__name__
        progress.send(Failed(kind, error.message, error.hint))
        return 1
    progress.send(Done(measure_peak_memory()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
