"""Holds requests with a grammar back until the grammar has been tried in a process of its own.

Nothing here waits but where it is told to: grammars are tried one after another beside the steps
of the engine, and a request goes on, or is refused, when its turn has come. A trial that takes too
much of a processor is ended with its process; how busy the machine is has no part in it. Verdicts
are kept, a bounded number of them, but those that only time has given.
"""

from __future__ import annotations

import hashlib
import math
import os
import select
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deepinfer.generation import GenerationRequest, Grammar

# For compiling, and for some steps. The engine then takes as long, on up to eight threads. Strings
# with a longest length take about 1.3 s with a vocabulary of 49,152, and most of it to compile.
TRIAL_CPU_S = 3.0
# A process that waits uses no processor, so its time has an end as well, far off on any machine.
TRIAL_TIMEOUT_S = 30.0
START_TIMEOUT_S = 60.0  # for the process to import the library and load the tokenizer
MAX_VERDICTS = 1_024
RECEIVE_BYTES = 1 << 16
CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the clock of the scheduler, in nanoseconds
TOO_LONG = f"takes longer than {TRIAL_CPU_S:g} s of a processor to compile and try"
TOO_LARGE = "takes more memory than allowed to compile and try, or ends the process that tries it"
NOT_STARTED = "cannot be compiled, because the process that tries grammars does not start"


class GrammarGate:
    """Belongs to the thread that steps."""

    def __init__(self, payload_dir: Path, vocab_size: int) -> None:
        self._payload_dir = payload_dir
        self._vocab_size = vocab_size
        self._held: dict[str, _Held] = {}
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()  # by the grammar's digest
        self._timed_out: set[bytes] = set()  # for who is held by now, and nobody after them
        self._trial: _Trial | None = None

    def hold(self, request: GenerationRequest) -> None:
        """Keep a request until `release` gives it back."""
        grammar = request.sampling.grammar
        assert grammar is not None
        self._held[request.request_id] = _Held(request, grammar, _digest(grammar))

    def drop(self, request_id: str) -> None:
        """Forget a request; an unknown id is not an error."""
        self._held.pop(request_id, None)

    def release(self, timeout_s: float) -> Iterator[tuple[GenerationRequest, str | None]]:
        """The requests whose grammar has been tried, with what is wrong with it if anything is.

        Waits up to `timeout_s` for the trial that runs.
        """
        if not self._held:
            return
        self._advance(timeout_s)
        timed_out, self._timed_out = self._timed_out, set()
        for request_id, held in list(self._held.items()):
            if held.digest in self._verdicts:
                self._verdicts.move_to_end(held.digest)
                del self._held[request_id]
                yield held.request, self._verdicts[held.digest]
            elif held.digest in timed_out:
                del self._held[request_id]
                yield held.request, TOO_LONG
        while len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)

    def close(self) -> None:
        self._held.clear()
        if self._trial is not None:
            self._trial.end()

    def _advance(self, timeout_s: float) -> None:
        """Give the process its next grammar, or take its answer."""
        untried = self._next_untried()
        if untried is None and (self._trial is None or self._trial.digest is None):
            return
        if self._trial is None:
            self._trial = _Trial.start(self._payload_dir, self._vocab_size)
        if untried is not None and self._trial.is_ready and self._trial.digest is None:
            self._trial.begin(untried.grammar, untried.digest)
        self._take_answer(self._trial, timeout_s)

    def _next_untried(self) -> _Held | None:
        return next((h for h in self._held.values() if h.digest not in self._verdicts), None)

    def _take_answer(self, trial: _Trial, timeout_s: float) -> None:
        answer = trial.receive(timeout_s)
        if answer is not None:
            digest = trial.settle()
            if digest is not None:
                self._verdicts[digest] = msgspec.json.decode(answer, type=str | None)
        elif trial.is_over:
            untried = self._next_untried()
            digest = trial.digest or (untried.digest if untried else None)
            if digest is not None and trial.is_ready and not trial.is_gone:
                self._timed_out.add(digest)
            elif digest is not None:
                self._verdicts[digest] = TOO_LARGE if trial.is_ready else NOT_STARTED
            trial.end()
            # Started before it is asked for, so that nobody waits for it but the next grammar.
            self._trial = _Trial.start(self._payload_dir, self._vocab_size)


@dataclass(frozen=True)
class _Held:
    request: GenerationRequest
    grammar: Grammar
    digest: bytes


def _digest(grammar: Grammar) -> bytes:
    text = f"{grammar.kind} {grammar.ebnf or grammar.text}"
    return hashlib.sha256(text.encode()).digest()


def _cpu_time_s(process: subprocess.Popen[bytes]) -> float:
    """What all threads of a process have used of processors; 0 where it cannot be known."""
    if sys.platform != "linux":
        return 0.0
    # The clock of another process by its id, as clock_getcpuclockid(3) makes it.
    clock = (~process.pid << 3) | CPUCLOCK_SCHED
    try:
        return time.clock_gettime(clock)
    except OSError:  # it has ended, and been waited for
        return 0.0


@dataclass
class _Trial:
    """The process, and the digest of the grammar that it is at."""

    process: subprocess.Popen[bytes]
    deadline: float
    cpu_limit_s: float = math.inf  # of all that the process has used when it must have answered
    digest: bytes | None = None
    is_ready: bool = False
    is_gone: bool = False
    received: bytes = b""

    @classmethod
    def start(cls, payload_dir: Path, vocab_size: int) -> _Trial:
        command = [sys.executable, "-m", "deepinfer.backends.openvino_trial"]
        process = subprocess.Popen(
            [*command, str(payload_dir), str(vocab_size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return cls(process, time.monotonic() + START_TIMEOUT_S)

    @property
    def is_over(self) -> bool:
        """Whether no answer will come, or none in time."""
        if self.is_gone or time.monotonic() > self.deadline:
            return True
        return self.digest is not None and _cpu_time_s(self.process) > self.cpu_limit_s

    def begin(self, grammar: Grammar, digest: bytes) -> None:
        assert self.process.stdin is not None
        self.digest = digest
        self.deadline = time.monotonic() + TRIAL_TIMEOUT_S
        self.cpu_limit_s = _cpu_time_s(self.process) + TRIAL_CPU_S
        try:
            self.process.stdin.write(msgspec.json.encode(grammar) + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.is_gone = True

    def settle(self) -> bytes | None:
        """Whose answer has just come: a grammar's, or none's if it was that all is loaded."""
        digest, self.digest, self.is_ready = self.digest, None, True
        return digest

    def receive(self, timeout_s: float) -> bytes | None:
        """A line, if it comes in this time."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        if select.select([fd], [], [], timeout_s)[0]:
            data = os.read(fd, RECEIVE_BYTES)
            self.is_gone = not data
            self.received += data
        line, newline, rest = self.received.partition(b"\n")
        if not newline:
            return None
        self.received = rest
        return line

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
