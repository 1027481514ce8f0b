"""The file that keeps what the compiling libraries print, log and warn about during one build.

A terminal shows the build's own phases; the libraries' output goes here. `--verbose` shows it as it
arrives, a failed build shows its last lines, and warnings about accuracy are shown in any case.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

# Libraries that bind their own handlers to the stderr of the moment when they are imported.
LIBRARY_LOGGERS = ("nncf", "optimum", "transformers", "huggingface_hub", "torch", "openvino")
TAIL_LINES = 20
TRACEBACK_MARK = "--- how the compiler process ended ---"  # what follows is not the libraries'
MAX_LINE_CHARS = 400
MAX_ACCURACY_WARNINGS = 8
FOLLOW_INTERVAL_S = 0.2
# What ModelOpt, TensorRT and NNCF say when the numbers of an engine may be off: "Large KV
# activation detected", "... may lead to higher accuracy drop", "overflow", "NaN".
ACCURACY = re.compile(
    r"accura|large kv activation|outlier|overflow|non-?finite|not finite|\bnan\b|amax is nan",
    re.IGNORECASE,
)
ACCURACY_WORDS = ("accura", "activation", "outlier", "overflow", "finite", "nan")  # one in each
# Lines that name accuracy and warn of nothing: indented ones quote the source of a warning, and
# ModelOpt 0.37 warns of a quantised LM head whenever it has not just switched that off itself.
NOT_A_WARNING = re.compile(
    r"^\s|\[(I|V|INFO|VERBOSE|DEBUG)\]|\b(INFO|DEBUG)\b|Enable lm_head quantization"
)
PYTHON_PLACE = re.compile(r"^\S+\.py:\d+: \w*Warning: (?:Warning: )?")
CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f]"
)


@dataclass(frozen=True)
class BuildLog:
    path: Path

    @classmethod
    def create(cls, target: Path) -> BuildLog:
        """An empty log for the engine folder `target`, in the user's cache or, failing that, /tmp.

        Builds of one target replace each other's log; whoever builds it holds its lock.
        """
        digest = hashlib.sha256(os.fsencode(target.absolute())).hexdigest()[:8]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "deepinfer" / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"build-{target.name}-{digest}.log"
            path.write_bytes(b"")
        except OSError:
            descriptor, name = tempfile.mkstemp(prefix="deepinfer-build-", suffix=".log")
            os.close(descriptor)
            path = Path(name)
        return cls(path)

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Send prints, warnings and log records of libraries in this process to the log."""
        with self.path.open("a", encoding="utf-8", errors="replace", buffering=1) as file:
            handler = logging.StreamHandler(file)
            handler.setFormatter(logging.Formatter("%(name)s %(levelname)s: %(message)s"))
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(file),
                contextlib.redirect_stderr(file),
                _handled_by(handler),
            ):
                warnings.simplefilter("default")
                warnings.showwarning = lambda message, category, filename, lineno, *_: print(
                    warnings.formatwarning(message, category, filename, lineno), file=file
                )
                yield

    @contextlib.contextmanager
    def follow(self, stream: TextIO) -> Iterator[None]:
        """Copy what is written to the log into `stream`, as it arrives."""
        has_ended = threading.Event()

        def copy() -> None:
            with self.path.open(encoding="utf-8", errors="replace") as file:
                while True:
                    is_last = has_ended.wait(FOLLOW_INTERVAL_S)
                    if text := file.read():
                        stream.write(text)
                        stream.flush()
                    if is_last:
                        return

        thread = threading.Thread(target=copy, name="build-log", daemon=True)
        thread.start()
        try:
            yield
        finally:
            has_ended.set()
            thread.join()

    def tail(self) -> list[str]:
        """The libraries' last lines without control characters; empty when there is no output."""
        last: deque[str] = deque(maxlen=TAIL_LINES)
        for line in self._lines():
            if line.startswith(TRACEBACK_MARK):
                break
            if not line.isspace():
                last.append(line)
        return [shown for line in last if (shown := _plain(line))]

    def accuracy_warnings(self) -> list[str]:
        """Lines that warn of a loss of accuracy, each once, with a count of what is left out."""
        found = dict.fromkeys(
            PYTHON_PLACE.sub("", line).strip()
            for line in self._accuracy_lines()
            if not NOT_A_WARNING.search(line)
        )
        lines = list(found)
        if len(lines) > MAX_ACCURACY_WARNINGS:
            more = len(lines) - MAX_ACCURACY_WARNINGS
            return [*lines[:MAX_ACCURACY_WARNINGS], f"and {more} more like these in `{self.path}`"]
        return lines

    def _accuracy_lines(self) -> Iterator[str]:
        for line in self._lines():
            folded = line.lower()
            # A log may have a million lines, and the expression takes a while for each.
            if any(word in folded for word in ACCURACY_WORDS):
                shown = _plain(line)
                if ACCURACY.search(shown):
                    yield shown

    def _lines(self) -> Iterator[str]:
        """As they were written, one at a time: a log may be larger than memory should hold."""
        with contextlib.suppress(OSError):
            with self.path.open(encoding="utf-8", errors="replace", newline="\n") as file:
                yield from file


def _plain(line: str) -> str:
    """What a terminal would show of a line, as far as it is worth showing."""
    # A progress bar draws over itself: what counts is what it showed last.
    shown = line.rstrip("\r\n").rsplit("\r", 1)[-1]
    return CONTROL.sub("", shown).rstrip()[:MAX_LINE_CHARS]


@contextlib.contextmanager
def _handled_by(handler: logging.Handler) -> Iterator[None]:
    """Have the libraries' loggers write to `handler` only, from INFO up."""
    loggers = [logging.getLogger(name) for name in LIBRARY_LOGGERS]
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
