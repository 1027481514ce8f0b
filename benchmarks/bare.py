"""`bare_pipeline.py` in its process, spoken to over pipes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil


class BarePipeline:
    """The library without us. `overrides` are what `bare_pipeline.py` takes."""

    def __init__(self, engine: Path, overrides: Mapping[str, Any] | None = None) -> None:
        script = Path(__file__).with_name("bare_pipeline.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(engine), json.dumps(overrides or {})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def memory_bytes(self) -> int:
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def run(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> float:
        """Seconds until each prompt, all sent at once, has its `max_tokens`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        job = json.dumps({"prompts": prompts, "max_tokens": max_tokens})
        print(job, file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        assert answer["num_tokens"] == len(prompts) * max_tokens, answer
        return float(answer["elapsed_s"])

    def close(self) -> None:
        self._process.communicate()
