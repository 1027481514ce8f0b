"""The Python libraries that are installed, beside what DeepInfer's own metadata asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from deepinfer.doctor.finding import Device, Finding, Status

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# What a group of libraries is for, its extra, and how bad it is when one of them is missing.
SERVING = ("serving", "", Status.FAILED)
LIBRARY_GROUPS = {
    Device.CPU: (
        SERVING,
        ("serving on the CPU", "openvino", Status.FAILED),
        ("building for the CPU", "openvino-build", Status.WARNING),
    ),
    Device.GPU: (SERVING,),
}


def check_libraries(
    requirements: Sequence[str] | None,
    version_of: Callable[[str], str | None],
    device: Device = Device.CPU,
) -> list[Finding]:
    """Compare what is installed with each group of `requirements`, DeepInfer's own metadata."""
    if requirements is None:
        extra = "[openvino]" if device is Device.CPU else ""
        return [
            Finding(
                "libraries",
                Status.WARNING,
                "DeepInfer runs from its source folder; the versions it needs are not known",
                f"install it with `pip install -e '.{extra}'`",
            )
        ]
    return [
        check_group(topic, select_requirements(requirements, extra), version_of, if_missing=status)
        for topic, extra, status in LIBRARY_GROUPS[device]
    ]


def select_requirements(requirements: Iterable[str], extra: str) -> list[Requirement]:
    """The requirements of one extra, with what it takes from others, or of the core ("")."""
    from packaging.requirements import Requirement

    requirements = list(requirements)
    selected: list[Requirement] = []
    for requirement in map(Requirement, requirements):
        if not _is_in_extra(requirement, extra):
            continue
        if requirement.name == "deepinfer":
            for other in sorted(requirement.extras):
                selected.extend(select_requirements(requirements, other))
        else:
            selected.append(requirement)
    return selected


def _is_in_extra(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return not extra
    is_core = requirement.marker.evaluate({"extra": ""})
    return requirement.marker.evaluate({"extra": extra}) and is_core == (not extra)


def check_group(
    topic: str,
    group: Iterable[Requirement],
    version_of: Callable[[str], str | None],
    *,
    if_missing: Status,
) -> Finding:
    """A missing library counts as `if_missing`; one of another version may work: a warning."""
    versions = {requirement: version_of(requirement.name) for requirement in group}
    missing = [requirement for requirement in versions if versions[requirement] is None]
    strange = [
        requirement
        for requirement, version in versions.items()
        if version and not requirement.specifier.contains(version, prereleases=True)
    ]
    if not missing and not strange:
        seen = ", ".join(f"{one.name} {version}" for one, version in versions.items())
        return Finding(topic, Status.OK, seen)
    seen = "; ".join(
        [
            *([f"not installed: {', '.join(one.name for one in missing)}"] if missing else []),
            *(f"{one.name} {versions[one]} is not {one.specifier}" for one in strange),
        ]
    )
    wanted = " ".join(f"'{one.name}{one.specifier}'" for one in [*missing, *strange])
    status = if_missing if missing else Status.WARNING
    return Finding(topic, status, seen, f"run `pip install {wanted}`")


def own_requirements() -> list[str] | None:
    """What DeepInfer's installed metadata requires, or None when it is not installed."""
    try:
        return metadata.requires("deepinfer") or []
    except metadata.PackageNotFoundError:
        return None
