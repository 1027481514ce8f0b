"""Where a build takes place: a hidden folder beside the engine, which becomes it in one step.

The folder `.<name>.building` is its own lock: whoever builds that name holds an flock on it, so a
folder without a lock is left over from a killed build.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from deepinfer.errors import BuildError
from deepinfer.manifest import MANIFEST_NAME

BUILDING_SUFFIX = ".building"
REPLACED_SUFFIX = ".replaced"
AT_FDCWD = -100  # "relative to the working directory", from fcntl.h
RENAME_EXCHANGE = 2  # from linux/fs.h


@dataclass(frozen=True)
class Staging:
    """A locked, empty folder. `publish` makes it the engine at `target`, in place of any other."""

    path: Path
    target: Path

    def publish(self) -> None:
        """Flush everything to the disk and rename. After this, `path` does not exist."""
        refuse_foreign(self.target)
        _flush_tree(self.path)
        if self.target.exists():
            _replace(self.path, self.target)
        else:
            os.rename(self.path, self.target)
        _flush(self.target.parent)


@contextmanager
def open_staging(target: Path, on_wait: Callable[[], None]) -> Iterator[Staging]:
    """Lock the staging folder of `target`, waiting for another build of it after `on_wait()`.

    Whatever is in it at the end, on success or not, is removed. Raises BuildError when `target` is
    not ours to replace, or its folder cannot be written to.
    """
    refuse_foreign(target)
    path = target.parent / f".{target.name}{BUILDING_SUFFIX}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_litter(target.parent)
        lock = _lock_new_folder(path, on_wait)
    except OSError as error:
        raise BuildError(
            f"cannot write to `{target.parent}`: {(error.strerror or str(error)).lower()}",
            hint="choose another folder with `--output`",
        ) from error
    try:
        _restore_replaced(target)
        yield Staging(path, target)
    finally:
        if _is_same_folder(lock, path):
            shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def free_disk_bytes(path: Path) -> int:
    """Free bytes on the disk of `path`, or of its nearest parent that exists."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def refuse_foreign(target: Path) -> None:
    """Raise BuildError when `target` exists and is not an engine."""
    if _is_foreign(target):
        raise BuildError(
            f"`{target}` exists and is not an engine; it will not be overwritten",
            hint="choose another `--name` or `--output`, or move it away",
        )


def _is_foreign(target: Path) -> bool:
    """Whether there is something else than an engine, whatever another build replaces meanwhile."""
    while True:
        try:
            folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        except OSError:
            # A file or a link; or nothing, in a place where nothing can be.
            return os.path.lexists(target)
        try:
            if MANIFEST_NAME in os.listdir(folder):
                return False
            if _is_same_folder(folder, target):
                return True
        finally:
            os.close(folder)


def _lock_new_folder(path: Path, on_wait: Callable[[], None]) -> int:
    """Make `path`, lock it, and empty it. Returns the descriptor that holds the lock."""
    while True:
        with suppress(FileExistsError):
            path.mkdir()
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # the build before us finished between the two calls
        try:
            if not _try_lock(lock):
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_same_folder(lock, path):
                _empty(path)
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # the folder that we waited for has become an engine


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same_folder(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _clear_litter(folder: Path) -> None:
    """Remove what killed builds of any name left in `folder`."""
    for path in folder.glob(f".*{BUILDING_SUFFIX}"):
        with suppress(FileNotFoundError, NotADirectoryError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if _try_lock(lock) and _is_same_folder(lock, path):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _replace(new: Path, old: Path) -> None:
    """Put the folder `new` in the place of `old`, and remove what was `old`."""
    # Once exchanged, the old engine is in the staging folder; the lock keeps other builds off it.
    lock = os.open(old, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _exchange(new, old):
            shutil.rmtree(new)
            return
        replaced = _replaced_path(old)
        os.rename(old, replaced)
        os.rename(new, old)
        # The next build may already be removing it; it renames only after our lock is released.
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        os.close(lock)


def _replaced_path(target: Path) -> Path:
    return target.parent / f".{target.name}{REPLACED_SUFFIX}"


def _restore_replaced(target: Path) -> None:
    """Finish a replacement that was killed between its two renames."""
    replaced = _replaced_path(target)
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
    elif replaced.exists():
        os.rename(replaced, target)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step, where the system and the file system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = [os.fsencode(first), os.fsencode(second)]
    if rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _flush_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _flush(Path(root) / name)
        _flush(Path(root))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
