"""A stand-in for the `pynvml` module: the functions that DeepInfer calls, over made-up cards.

Codes, messages and types are those of the real module; a value that is an NVMLError is raised.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

GIB = 1 << 30
NVML_ERROR_UNINITIALIZED = 1
NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_ERROR_GPU_IS_LOST = 15
NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
NVML_P2P_CAPS_INDEX_WRITE = 1
NVML_P2P_STATUS_OK = 0
NVML_P2P_STATUS_NOT_SUPPORTED = 5
MESSAGES = {
    NVML_ERROR_UNINITIALIZED: "Uninitialized",
    NVML_ERROR_NOT_SUPPORTED: "Not Supported",
    NVML_ERROR_DRIVER_NOT_LOADED: "Driver Not Loaded",
    NVML_ERROR_LIBRARY_NOT_FOUND: "NVML Shared Library Not Found",
    NVML_ERROR_GPU_IS_LOST: "GPU is lost",
    NVML_ERROR_LIB_RM_VERSION_MISMATCH: "RM has detected an NVML/RM version mismatch.",
}


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return MESSAGES[self.value]


@dataclass(frozen=True)
class Card:
    name: str | bytes
    total_bytes: int = 32 * GIB
    free_bytes: int = 30 * GIB
    capability: tuple[int, int] | NVMLError = (12, 0)


class FakeNvml:
    """Put it in `sys.modules["pynvml"]`. Every call between init and shutdown is checked."""

    NVML_ERROR_DRIVER_NOT_LOADED = NVML_ERROR_DRIVER_NOT_LOADED
    NVML_ERROR_LIBRARY_NOT_FOUND = NVML_ERROR_LIBRARY_NOT_FOUND
    NVML_P2P_CAPS_INDEX_WRITE = NVML_P2P_CAPS_INDEX_WRITE
    NVML_P2P_STATUS_OK = NVML_P2P_STATUS_OK

    def __init__(
        self,
        *cards: Card,
        driver_version: str | bytes | NVMLError = "580.126.20",
        cuda_version: int | NVMLError = 13000,
        init_error: NVMLError | None = None,
        p2p_status: int | NVMLError = NVML_P2P_STATUS_NOT_SUPPORTED,
    ) -> None:
        self.NVMLError = NVMLError
        self.num_open = 0
        self._cards = cards
        self._driver_version = driver_version
        self._cuda_version = cuda_version
        self._init_error = init_error
        self._p2p_status = p2p_status

    def _answer(self, value: Any) -> Any:
        if self.num_open == 0:
            raise NVMLError(NVML_ERROR_UNINITIALIZED)
        if isinstance(value, NVMLError):
            raise value
        return value

    def nvmlInit(self) -> None:
        if self._init_error:
            raise self._init_error
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self._answer(None)
        self.num_open -= 1

    def nvmlSystemGetDriverVersion(self) -> Any:
        return self._answer(self._driver_version)

    def nvmlSystemGetCudaDriverVersion_v2(self) -> Any:
        return self._answer(self._cuda_version)

    def nvmlDeviceGetCount(self) -> Any:
        return self._answer(len(self._cards))

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self._answer(self._cards[index])

    def nvmlDeviceGetName(self, handle: Card) -> Any:
        return self._answer(handle.name)

    def nvmlDeviceGetMemoryInfo(self, handle: Card) -> Any:
        return self._answer(SimpleNamespace(total=handle.total_bytes, free=handle.free_bytes))

    def nvmlDeviceGetCudaComputeCapability(self, handle: Card) -> Any:
        return self._answer(handle.capability)

    def nvmlDeviceGetP2PStatus(self, device1: Card, device2: Card, p2pIndex: int) -> Any:
        if p2pIndex != NVML_P2P_CAPS_INDEX_WRITE:
            raise TypeError(f"{p2pIndex!r} is no number of a capability")
        return self._answer(self._p2p_status)
