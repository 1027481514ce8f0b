"""A finding: one thing that was looked at, how it is, and what to do about it.

FAILED means that the main job of this machine, serving on the report's device, cannot work.
Nothing here knows what is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Device(StrEnum):
    """Where this machine serves engines."""

    CPU = "CPU"
    GPU = "GPU"


@dataclass(frozen=True)
class Finding:
    topic: str
    status: Status
    seen: str
    advice: str | None = None  # the one thing to do; None when there is nothing to do


@dataclass(frozen=True)
class Report:
    device: Device
    findings: list[Finding]

    @property
    def can_serve(self) -> bool:
        return all(finding.status is not Status.FAILED for finding in self.findings)


def gpu_trouble(device: Device) -> Status:
    """How bad it is that a GPU cannot be used, on a machine that serves on `device`."""
    return Status.FAILED if device is Device.GPU else Status.WARNING
