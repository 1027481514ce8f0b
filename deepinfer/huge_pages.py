"""Huge pages for what an engine on a CPU reads in every step: its weights.

A step reads each weight once. In pages of 4 KiB a megabyte takes 256 translations of addresses,
none of which is remembered from the step before. Linux moves memory into pages of 2 MiB when it is
asked to (MADV_COLLAPSE, since 6.1). It is asked after loading: while weights are laid out one by
one, few of them begin where a huge page does. Elsewhere, and where the machine's owner has said
`never`, nothing is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
PROCESS = Path("/proc/self")
MADV_COLLAPSE = 25  # linux/mman.h; not in Python's `mmap`
MIN_RESIDENT_SHARE = 0.5  # of a huge page: more memory than is used twice over is not worth it


def collapse() -> int:
    """Move this process's own memory into huge pages, as far as it is in use and they can be had.

    Returns how many bytes of it lie there now; 0 where that is not wanted, or not known.
    """
    size = _huge_page_bytes()
    if not size:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    try:
        mappings = (PROCESS / "maps").read_text()
    except OSError as error:
        logger.debug("no huge pages: %s", error)
        return 0
    for start, end in _own_mappings(mappings):
        for first, last in _find_resident(libc, -(-start // size) * size, end // size * size, size):
            if libc.madvise(first, last - first, MADV_COLLAPSE) != 0:
                # Of a part of it, perhaps; or the kernel is too old.
                logger.debug("no huge pages: %s", os.strerror(ctypes.get_errno()))
    return read_huge_bytes()


def read_huge_bytes() -> int:
    """How much of this process's own memory lies in huge pages."""
    with contextlib.suppress(OSError):
        for line in (PROCESS / "smaps_rollup").read_text().splitlines():
            if line.startswith("AnonHugePages:"):
                return int(line.split()[1]) * 1024
    return 0


def _huge_page_bytes() -> int:
    """0 where there are none, or they are not wanted."""
    if sys.platform != "linux":
        return 0
    try:
        if "[never]" in (SETTINGS / "enabled").read_text():
            return 0
        return int((SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def _own_mappings(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of the anonymous memory that can be written, of /proc/PID/maps."""
    for line in text.splitlines():
        addresses, permissions, _offset, _device, inode = line.split(maxsplit=5)[:5]
        if permissions == "rw-p" and inode == "0":
            start, _, end = addresses.partition("-")
            yield int(start, 16), int(end, 16)


def _find_resident(libc: Any, start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """The runs of huge pages from `start` to `end` whose memory is there for the most part."""
    if end <= start:
        return
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    residency = ctypes.create_string_buffer((end - start) // page_bytes)
    if libc.mincore(start, end - start, residency) != 0:
        return  # it went away meanwhile
    pages = residency.raw
    pages_each = size // page_bytes
    run_start = None
    for at in range(0, len(pages), pages_each):
        is_used = pages.count(1, at, at + pages_each) >= MIN_RESIDENT_SHARE * pages_each
        if is_used and run_start is None:
            run_start = start + at * page_bytes
        elif not is_used and run_start is not None:
            yield run_start, start + at * page_bytes
            run_start = None
    if run_start is not None:
        yield run_start, end
