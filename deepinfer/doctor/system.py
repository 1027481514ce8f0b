"""The machine around the libraries: Python, memory, disks, open files and the port.

Knows no backend and no GPU.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepinfer.doctor.finding import Finding, Status
from deepinfer.terminal import format_bytes

MIN_PYTHON = (3, 11)
MIN_FREE_MEMORY_BYTES = 2 << 30  # the API process, OpenVINO and a small engine
MIN_FREE_DISK_BYTES = 10 << 30  # a checkpoint of a few billion parameters beside its engine
MIN_OPEN_FILES = 4096  # a descriptor for each connection, and some for the engine


@dataclass(frozen=True)
class Space:
    """The file system that holds a folder, or will hold it when it is made."""

    free_bytes: int
    is_writable: bool


def check_python(version: tuple[int, int, int], system: str, machine: str) -> Finding:
    seen = f"{'.'.join(map(str, version))} on {system} {machine}"
    if version[:2] < MIN_PYTHON:
        advice = f"install Python {'.'.join(map(str, MIN_PYTHON))} or later"
        return Finding("Python", Status.FAILED, seen, advice)
    if system != "Linux":
        return Finding(
            "Python", Status.WARNING, seen, "serve on Linux; elsewhere nothing is tested"
        )
    return Finding("Python", Status.OK, seen)


def check_memory(total_bytes: int, available_bytes: int) -> Finding:
    seen = f"{format_bytes(available_bytes)} of {format_bytes(total_bytes)} available"
    if available_bytes < MIN_FREE_MEMORY_BYTES:
        advice = f"free memory: a small engine takes up to {format_bytes(MIN_FREE_MEMORY_BYTES)}"
        return Finding("memory", Status.WARNING, seen, advice)
    return Finding("memory", Status.OK, seen)


def check_disk(topic: str, folder: Path, space: Space) -> Finding:
    seen = f"{format_bytes(space.free_bytes)} free at `{folder}`"
    if not space.is_writable:
        advice = "give this user the right to write there"
        return Finding(topic, Status.WARNING, f"{seen}, which cannot be written to", advice)
    if space.free_bytes < MIN_FREE_DISK_BYTES:
        advice = f"free {format_bytes(MIN_FREE_DISK_BYTES)} to build more than small models"
        return Finding(topic, Status.WARNING, seen, advice)
    return Finding(topic, Status.OK, seen)


def check_open_files(soft_limit: int, hard_limit: int) -> Finding:
    if soft_limit == resource.RLIM_INFINITY:
        return Finding("open files", Status.OK, "no limit")
    seen = f"limit {soft_limit:,}, a connection takes one"
    if soft_limit >= MIN_OPEN_FILES:
        return Finding("open files", Status.OK, seen)
    if hard_limit == resource.RLIM_INFINITY or hard_limit >= MIN_OPEN_FILES:
        advice = f"run `ulimit -n {MIN_OPEN_FILES}` before `deepinfer serve`"
    else:
        advice = f"ask for a hard limit of {MIN_OPEN_FILES} (now {hard_limit}) in limits.conf"
    return Finding("open files", Status.WARNING, seen, advice)


def check_port(port: int, obstacle: str | None) -> Finding:
    topic = f"port {port}"
    if obstacle:
        return Finding(topic, Status.WARNING, obstacle, "serve on another one with `--port`")
    return Finding(topic, Status.OK, "free")


def hub_cache_dir(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it downloads, by the variables that it reads."""
    if folder := environ.get("HF_HUB_CACHE"):
        return Path(folder)
    if folder := environ.get("HF_HOME"):
        return Path(folder) / "hub"
    cache = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "huggingface" / "hub"


def measure_space(folder: Path) -> Space:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return Space(shutil.disk_usage(existing).free, os.access(existing, os.W_OK))


def find_port_obstacle(port: int) -> str | None:
    """Why nobody can listen on `port` of this machine now, or None."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None
