"""The GPUs that the double sees: recorded cards in an environment variable, or none.

The same variable feeds the double of `pynvml`, so that both see one machine.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from tests.contract.double.record import message
from tests.fake_nvml import NVML_ERROR_LIBRARY_NOT_FOUND, Card, FakeNvml, NVMLError

MACHINE_VARIABLE = "DOUBLE_MACHINE"


@dataclass(frozen=True)
class GpuMachine:
    cards: tuple[Card, ...] = ()
    driver_version: str = "580.126.20"
    cuda_version: int = 13000
    has_tensorrt_libraries: bool = True  # on the search path of the dynamic loader

    def to_json(self) -> str:
        cards = [
            {
                "name": card.name,
                "total_bytes": card.total_bytes,
                "free_bytes": card.free_bytes,
                "capability": card.capability,
            }
            for card in self.cards
        ]
        rest = {
            "driver_version": self.driver_version,
            "cuda_version": self.cuda_version,
            "has_tensorrt_libraries": self.has_tensorrt_libraries,
        }
        return json.dumps({"cards": cards, **rest})

    @classmethod
    def from_json(cls, text: str) -> GpuMachine:
        content = json.loads(text)
        cards = [Card(**{**c, "capability": tuple(c["capability"])}) for c in content["cards"]]
        return cls(**{**content, "cards": tuple(cards)})


def read_machine() -> GpuMachine:
    text = os.environ.get(MACHINE_VARIABLE)
    return GpuMachine() if text is None else GpuMachine.from_json(text)


def require_tensorrt_libraries() -> None:
    """What importing `tensorrt`, or anything above it, meets where its libraries are not found."""
    if not read_machine().has_tensorrt_libraries:
        raise ImportError(message("no_tensorrt_library"))


def make_nvml() -> FakeNvml:
    """What `import pynvml` gives; without cards there is no driver either."""
    machine = read_machine()
    error = None if machine.cards else NVMLError(NVML_ERROR_LIBRARY_NOT_FOUND)
    return FakeNvml(
        *machine.cards,
        driver_version=machine.driver_version,
        cuda_version=machine.cuda_version,
        init_error=error,
    )


def device_count() -> int:
    return len(read_machine().cards)


def first_card() -> Card:
    """Raises RuntimeError when there is no card, as asking torch for device 0 does."""
    cards = read_machine().cards
    if not cards:
        raise RuntimeError(message("no_cuda_device"))
    return cards[0]


def get_sm_version() -> int:
    major, minor = first_card().capability  # type: ignore[misc]
    return major * 10 + minor
