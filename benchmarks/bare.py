"""`bare_pipeline.py` in its process, spoken to over pipes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil


class PipelineFailed(Exception):
    """With the library's last words."""


class BarePipeline:
    """The library without us. `overrides` are what `bare_pipeline.py` takes."""

    def __init__(self, engine: Path, overrides: Mapping[str, Any] | None = None) -> None:
        script = Path(__file__).with_name("bare_pipeline.py")
        self._stderr = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(engine), json.dumps(overrides or {})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )

    @property
    def memory_bytes(self) -> int:
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def run(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> float:
        """Seconds until each prompt, all sent at once, has its `max_tokens`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        job = json.dumps({"prompts": prompts, "max_tokens": max_tokens})
        with suppress(BrokenPipeError):  # then there is no answer either
            print(job, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise PipelineFailed(self._last_words)
        answer = json.loads(line)
        assert answer["num_tokens"] == len(prompts) * max_tokens, answer
        return float(answer["elapsed_s"])

    @property
    def _last_words(self) -> str:
        self._process.wait()
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr if line.strip()]
        return lines[-1] if lines else f"exit status {self._process.returncode}"

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._process.communicate()
        self._stderr.close()
