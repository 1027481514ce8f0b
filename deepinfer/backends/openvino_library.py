"""OpenVINO GenAI as this package sees it: its modules, its constants, and what its errors say.

Importing it takes seconds, so it is imported when an engine is loaded and not before. This module
knows nothing of engines and requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepinfer.errors import BackendError
from deepinfer.generation import FinishReason


@dataclass(frozen=True)
class Library:
    """The imported modules and the constants of theirs that every step compares with."""

    genai: Any
    core: Any
    numpy: Any
    finish_reasons: dict[Any, FinishReason]
    unfinished: Any
    ignored: Any

    @classmethod
    def load(cls) -> Library:
        try:
            import numpy
            import openvino
            import openvino_genai
        except ImportError as error:
            raise BackendError(
                f"this engine needs OpenVINO GenAI, which is not installed: {error}",
                hint="pip install 'deepinfer[openvino]'",
            ) from error
        # The names live in the extension module; the package re-exports only some of them.
        native = openvino_genai.py_openvino_genai
        reasons = native.GenerationFinishReason
        return cls(
            genai=openvino_genai,
            core=openvino,
            numpy=numpy,
            finish_reasons={
                reasons.STOP: FinishReason.STOP,
                reasons.LENGTH: FinishReason.LENGTH,
            },
            unfinished=reasons.NONE,
            ignored=native.GenerationStatus.IGNORED,
        )

    def token_tensor(self, token_ids: tuple[int, ...]) -> Any:
        array = self.numpy.array([token_ids], dtype=self.numpy.int64)  # [1, prompt_len]
        return self.core.Tensor(array)


def first_line(error: Exception) -> str:
    """What the library says, without the paths of the machine that it was compiled on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if "/src/" not in line and "Exception from" not in line]
    return (useful or lines or [type(error).__name__])[-1]
