"""From an engine folder to a running backend: the only place that knows every backend's name."""

from __future__ import annotations

import logging

from deepinfer.backends.base import Backend, ReportPhase
from deepinfer.engine import EngineOptions
from deepinfer.errors import BackendError
from deepinfer.manifest import EngineFolder
from deepinfer.trtllm_libraries import require_tensorrt
from deepinfer.trtllm_release import installed_version, require_release, untried_warning

logger = logging.getLogger(__name__)


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

        # Where it is not installed, the backend says so after it has looked at the GPU.
        if installed_version() is not None:
            _check_tensorrt_llm(allow_untried=options.allow_untried_release)
        return TensorRtLlmBackend.load(engine, options, report)
    if name == "simulated":
        from deepinfer.backends.simulated import SimulatedBackend

        return SimulatedBackend.load(engine)
    raise BackendError(
        f"engine `{engine.manifest.name}` needs the `{name}` backend, which this version of "
        "DeepInfer cannot run",
        hint="rebuild it for this machine with `deepinfer build --target auto`",
    )


def _check_tensorrt_llm(*, allow_untried: bool) -> None:
    """Raise BackendError for a release that is not to be used, or without its libraries."""
    version = require_release(allow_untried=allow_untried)
    if (warning := untried_warning(version)) is not None:
        logger.warning("%s", warning)
    require_tensorrt()
