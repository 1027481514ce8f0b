"""Memory that is moved into huge pages: which, when not, and that it still holds what it held."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest

from deepinfer import huge_pages
from deepinfer.backends.loading import load_backend
from deepinfer.engine import EngineOptions
from tests.building import BuildEngine

SIZE = 2 * 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's alone")


def set_up(folder: Path, enabled: str, size: str = f"{SIZE}\n") -> Path:
    (folder / "enabled").write_text(enabled)
    (folder / "hpage_pmd_size").write_text(size)
    return folder


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huge_pages, "SETTINGS", tmp_path)
    return tmp_path


def aligned(buffer: mmap.mmap) -> int:
    """Where the first huge page of a mapping would begin."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    return -(-address // SIZE) * SIZE


def can_collapse() -> bool:
    """Whether this kernel does it, and has memory in one piece: asked without our code."""
    with mmap.mmap(-1, 2 * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as buffer:
        buffer.write(b"\1" * (2 * SIZE))
        try:
            buffer.madvise(huge_pages.MADV_COLLAPSE)
        except OSError:
            return False
    return True


@pytest.mark.skipif(not can_collapse(), reason="this kernel moves nothing")
def test_memory_keeps_its_content_and_lies_in_huge_pages(settings: Path) -> None:
    set_up(settings, "always [madvise] never\n")
    pattern = bytes(range(256)) * (8 * SIZE // 256)
    with mmap.mmap(-1, 8 * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as buffer:
        buffer.write(pattern)
        before = huge_pages.read_huge_bytes()
        assert huge_pages.collapse() >= before + 4 * SIZE  # a page may be in use elsewhere
        assert buffer[:] == pattern


def test_memory_that_is_not_in_use_stays_unused() -> None:
    """Else a KV cache of which a little is used would take all of its memory."""
    libc = ctypes.CDLL(None)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    buffer = mmap.mmap(-1, 8 * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = aligned(buffer)
    used = {1: SIZE, 2: SIZE // 2, 4: SIZE // 2 - mmap.PAGESIZE, 6: SIZE}
    for page, num_bytes in used.items():
        ctypes.memset(start + page * SIZE, 1, num_bytes)
    found = list(huge_pages._find_resident(libc, start, start + 7 * SIZE, SIZE))
    offsets = [((first - start) // SIZE, (last - start) // SIZE) for first, last in found]
    assert offsets == [(1, 3), (6, 7)]
    assert list(huge_pages._find_resident(libc, start + SIZE, start, SIZE)) == []


def test_own_memory_is_neither_a_file_nor_shared_nor_code() -> None:
    text = (
        "5600a000-5600b000 r-xp 00000000 fe:00 77   /usr/bin/python3.11\n"
        "5600c000-5600d000 rw-p 00001000 fe:00 77   /usr/bin/python3.11\n"
        "5700a000-5700f000 rw-p 00000000 00:00 0    [heap]\n"
        "7f000000-7f400000 rw-p 00000000 00:00 0 \n"
        "7f400000-7f800000 ---p 00000000 00:00 0 \n"
        "7f800000-7f900000 rw-s 00000000 00:01 9    /dev/shm/a name with blanks\n"
    )
    assert list(huge_pages._own_mappings(text)) == [
        (0x5700A000, 0x5700F000),
        (0x7F000000, 0x7F400000),
    ]


@pytest.mark.parametrize(
    ("enabled", "size"),
    [("always madvise [never]\n", f"{SIZE}\n"), ("always [madvise] never\n", "unknown\n")],
    ids=["not wanted", "none"],
)
def test_nothing_is_moved_where_it_is_not_wanted(settings: Path, enabled: str, size: str) -> None:
    set_up(settings, enabled, size)
    assert huge_pages.collapse() == 0


def test_nothing_is_moved_where_nobody_says_what_there_is(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "PROCESS", settings / "nowhere")
    set_up(settings, "always [madvise] never\n")
    assert huge_pages.collapse() == 0


def test_nothing_is_moved_where_the_kernel_has_none(settings: Path) -> None:
    assert huge_pages.collapse() == 0  # no such files


def test_engine_lies_there_once_its_weights_are_where_they_stay(build_engine: BuildEngine) -> None:
    phases: list[str] = []
    engine = build_engine("llama", "fp32").engine
    backend = load_backend(engine, EngineOptions(), lambda phase, _percent: phases.append(phase))
    backend.close()
    assert phases[-2:] == ["warming up", "moving weights to huge pages"]
