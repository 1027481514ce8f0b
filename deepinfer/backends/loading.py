"""From an engine folder to a running backend: the only place that knows every backend's name."""

from __future__ import annotations

from deepinfer.backends.base import Backend, ReportPhase
from deepinfer.engine import EngineOptions
from deepinfer.errors import BackendError
from deepinfer.manifest import EngineFolder


def load_backend(engine: EngineFolder, options: EngineOptions, report: ReportPhase) -> Backend:
    """Load the payload with the library that compiled it, warmed up and ready to add requests.

    Raises EngineError when the payload does not suit this machine, BackendError when the library
    is missing, of another version, or fails.
    """
    name = engine.manifest.backend.name
    if name == "openvino":
        from deepinfer.backends.openvino import OpenVinoBackend

        return OpenVinoBackend.load(engine, options, report)
    if name == "tensorrt-llm":
        from deepinfer.backends.tensorrt_llm import TensorRtLlmBackend

        return TensorRtLlmBackend.load(engine, options, report)
    if name == "simulated":
        from deepinfer.backends.simulated import SimulatedBackend

        return SimulatedBackend.load(engine)
    raise BackendError(
        f"engine `{engine.manifest.name}` needs the `{name}` backend, which this version of "
        "DeepInfer cannot run",
        hint="rebuild it for this machine with `deepinfer build --target auto`",
    )
