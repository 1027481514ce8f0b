"""The result of one check, and the report of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """FAILED means that this machine cannot serve engines on the report's device."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Device(StrEnum):
    """The kind of device on which this machine serves engines."""

    CPU = "CPU"
    GPU = "GPU"


@dataclass(frozen=True)
class Finding:
    topic: str
    status: Status
    seen: str
    advice: str | None = None  # the one thing to do; None if nothing is to be done


@dataclass(frozen=True)
class Report:
    device: Device
    findings: list[Finding]

    @property
    def can_serve(self) -> bool:
        return all(finding.status is not Status.FAILED for finding in self.findings)


def gpu_problem_status(device: Device) -> Status:
    """The status of an unusable GPU on a machine that serves on `device`."""
    return Status.FAILED if device is Device.GPU else Status.WARNING
