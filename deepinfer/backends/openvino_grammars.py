"""Holds requests with a grammar back until the grammar has been tried in a process of its own.

Nothing here waits but where it is told to: grammars are tried one after another beside the steps
of the engine, and a request goes on, or is refused, when its turn has come. A trial that takes too
much of a processor is ended with its process; how busy the machine is has no part in it. Verdicts
are kept, a bounded number of them, but those that only time has given. Keys take turns: one with
many grammars waits for itself.

The library keeps each grammar that it has compiled for as long as its pipeline is there, in the
engine as in the process that tries them. So their memory is counted, and bounded.
"""

from __future__ import annotations

import hashlib
import logging
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

from deepinfer.backends.openvino_trial import Verdict
from deepinfer.generation import GenerationRequest, Grammar

logger = logging.getLogger(__name__)

# For compiling, and for some steps. The engine then takes as long, on up to eight threads. Strings
# with a longest length take about 1.3 s with a vocabulary of 49,152, and most of it to compile.
TRIAL_CPU_S = 3.0
# A process that waits uses no processor, so its time has an end as well, far off on any machine.
TRIAL_TIMEOUT_S = 30.0
START_TIMEOUT_S = 60.0  # for the process to import the library and load the tokenizer
MAX_VERDICTS = 1_024
# Beyond the first figure a pipeline is replaced by a new one when no request uses it; beyond
# the second no new grammar is taken.
MUCH_GRAMMAR_BYTES = 512 << 20
MAX_GRAMMAR_BYTES = 2 << 30
RECEIVE_BYTES = 1 << 16
CPUCLOCK_SCHED = 2  # linux/posix-timers.h: the clock of the scheduler, in nanoseconds
TOO_LONG = f"takes longer than {TRIAL_CPU_S:g} s of a processor to compile and try"
TOO_LARGE = "takes more memory than allowed to compile and try, or ends the process that tries it"
FULL = (
    "is one too many: the engine keeps the grammars that it has compiled, and has no room for more "
    "until it has no request for a moment; use one that was used before, or try again later"
)
NOT_STARTED = "cannot be compiled, because the process that tries grammars does not start"


class GrammarGate:
    """Belongs to the thread that steps."""

    def __init__(self, payload_dir: Path, vocab_size: int) -> None:
        self._payload_dir = payload_dir
        self._vocab_size = vocab_size
        self._held: dict[str, _Held] = {}
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()  # by the grammar's digest
        self._kept: dict[bytes, int] = {}  # bytes of each grammar that the engine was given
        self._turns: dict[str, int] = {}  # of keys: the number of the last trial that was theirs
        self._num_trials = 0
        self._trial: _Trial | None = None

    @property
    def is_nearly_full(self) -> bool:
        """Whether the engine does well to begin anew when it has no request."""
        return sum(self._kept.values()) >= MUCH_GRAMMAR_BYTES

    def has_passed(self, request: GenerationRequest) -> bool:
        """Whether the request may start, as far as its grammar is concerned."""
        grammar = request.sampling.grammar
        return grammar is None or _digest(grammar) in self._kept

    def hold(self, request: GenerationRequest, tenant: str, *, is_admitted: bool) -> None:
        """Keep a request until `release` gives it back. Keys, by their names, take turns."""
        grammar = request.sampling.grammar
        assert grammar is not None
        held = _Held(request, grammar, _digest(grammar), tenant, is_admitted)
        self._held[request.request_id] = held

    def drop(self, request_id: str) -> None:
        """Forget a request; an unknown id is not an error."""
        self._held.pop(request_id, None)

    def release(
        self, timeout_s: float, *, is_admitted: bool
    ) -> Iterator[tuple[GenerationRequest, str | None]]:
        """The requests whose grammar has been tried, with what is wrong with it if anything is.

        Waits up to `timeout_s` for the trial that runs.
        """
        if not self._held:
            return
        try:
            self._advance(timeout_s)
        except OSError as error:  # there is no memory or no descriptor for the process that tries
            logger.error("grammars cannot be tried: %s", error)
            for held in [one for one in self._held.values() if one.is_admitted == is_admitted]:
                del self._held[held.request.request_id]
                yield held.request, NOT_STARTED
            return
        for request_id, held in list(self._held.items()):
            if held.is_admitted != is_admitted:
                continue
            if held.digest in self._verdicts:
                self._verdicts.move_to_end(held.digest)
                del self._held[request_id]
                yield held.request, self._pass(held.digest, self._verdicts[held.digest])
            elif held.has_timed_out:
                del self._held[request_id]
                yield held.request, TOO_LONG
        while len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)

    def _pass(self, digest: bytes, verdict: Verdict) -> str | None:
        """What is wrong with a grammar that has been tried; else the engine is given it."""
        if verdict.fault is None and digest not in self._kept:
            if sum(self._kept.values()) + verdict.size_bytes > MAX_GRAMMAR_BYTES:
                return FULL
            self._kept[digest] = verdict.size_bytes
        return verdict.fault

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
            self._num_trials += 1
            self._turns[untried.tenant] = self._num_trials
            self._trial.begin(untried.grammar, untried.digest)
        self._take_answer(self._trial, timeout_s)

    def _next_untried(self) -> _Held | None:
        """Of the key whose last turn is the longest ago."""
        untried = (
            held
            for held in self._held.values()
            if held.digest not in self._verdicts and not held.has_timed_out
        )
        return min(untried, key=lambda held: self._turns.get(held.tenant, 0), default=None)

    def _take_answer(self, trial: _Trial, timeout_s: float) -> None:
        answer = trial.receive(timeout_s)
        if answer is not None:
            digest = trial.settle()
            verdict = msgspec.json.decode(answer, type=Verdict)
            if digest is not None:
                self._verdicts[digest] = verdict
            trial.size_bytes += verdict.size_bytes
            if trial.size_bytes >= MUCH_GRAMMAR_BYTES:
                self._start_anew(trial)
        elif trial.is_over:
            untried = self._next_untried()
            digest = trial.digest or (untried.digest if untried else None)
            if digest is not None and trial.is_ready and not trial.is_gone:
                for held in self._held.values():  # and for nobody after them
                    held.has_timed_out = held.has_timed_out or held.digest == digest
            elif digest is not None:
                self._verdicts[digest] = Verdict(TOO_LARGE if trial.is_ready else NOT_STARTED)
            self._start_anew(trial)

    def _start_anew(self, trial: _Trial) -> None:
        trial.end()
        self._trial = None  # the next one may not start
        # Started before it is asked for, so that nobody waits for it but the next grammar.
        self._trial = _Trial.start(self._payload_dir, self._vocab_size)


@dataclass
class _Held:
    request: GenerationRequest
    grammar: Grammar
    digest: bytes
    tenant: str
    is_admitted: bool
    has_timed_out: bool = False


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
    size_bytes: int = 0  # of all that it has compiled, which it keeps

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
