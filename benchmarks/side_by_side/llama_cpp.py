"""llama.cpp behind the server of its Python package, which pip compiles for this CPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.side_by_side.contender import Model, Unavailable
from benchmarks.side_by_side.environment import Environment, find_reason
from benchmarks.side_by_side.over_http import HttpContender

REQUIREMENTS = ("llama-cpp-python[server]==0.3.36", "gguf==0.19.0")


class LlamaCpp(HttpContender):
    name = "llama-cpp-python"
    precision = "q8_0"
    note = "its server answers one request at a time"
    ignores_eos = False  # it does not know the field; a short answer fails the count
    ready_path = "/v1/models"

    def __init__(self, logs: Path, environments: Path, pip_args: str) -> None:
        super().__init__(logs)
        self._environment = Environment(environments / "llama-cpp", REQUIREMENTS, pip_args)

    @property
    def version(self) -> str:
        return self._environment.version("llama-cpp-python")

    def prepare(self, model: Model) -> None:
        self._environment.install()
        self._convert(model.checkpoint)

    def command(self, model: Model, port: int) -> list[str]:
        return [
            *(str(self._environment.python), "-m", "llama_cpp.server"),
            *("--model", str(self._gguf(model.checkpoint)), "--port", str(port)),
            *("--n_ctx", str(model.max_seq_len), "--interrupt_requests", "false"),
        ]

    def _gguf(self, checkpoint: Path) -> Path:
        return checkpoint / f"{self.precision}.gguf"

    def _convert(self, checkpoint: Path) -> None:
        path = self._gguf(checkpoint)
        if path.exists():
            return
        unfinished = path.with_suffix(".part")
        script = Path(__file__).with_name("to_gguf.py")
        command = [str(self._environment.python), str(script), str(checkpoint), str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise Unavailable(f"no GGUF: {find_reason(done.stderr)}")
        unfinished.rename(path)
