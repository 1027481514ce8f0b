"""Private temporary folders that do not outlive the process that made them, however it ends.

A process that is killed cleans up nothing. So each folder holds a file that its process keeps
locked; the kernel lets go of the lock, and whoever makes the next folder removes what is unlocked.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
import weakref
from pathlib import Path

logger = logging.getLogger(__name__)

PREFIX = "deepinfer-"
LOCK_NAME = "lock"
# The path of a socket has 107 bytes at most, and TMPDIR may have more.
MAX_PARENT_BYTES = 70


class TempFolder:
    """A folder that only this user can enter, until `close`, or the end of this process."""

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        if len(os.fsencode(parent)) > MAX_PARENT_BYTES:
            parent = "/tmp"
        remove_abandoned(Path(parent))
        descriptor = None
        while descriptor is None:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # mode 0700
            descriptor = _lock(self.path / LOCK_NAME, os.O_CREAT)
        self._finalizer = weakref.finalize(self, _remove, self.path, descriptor)

    def close(self) -> None:
        """Remove it with all that is in it."""
        self._finalizer()


def remove_abandoned(parent: Path) -> None:
    """Remove the folders whose processes have ended; those of others are left alone."""
    with contextlib.suppress(OSError):
        for folder in parent.glob(f"{PREFIX}*"):
            if not _is_ours(folder):
                continue
            descriptor = _lock(folder / LOCK_NAME, 0)
            if descriptor is not None:
                logger.info("removing `%s`, which a process has left behind", folder)
                _remove(folder, descriptor)


def _is_ours(folder: Path) -> bool:
    try:
        status = folder.lstat()
    except OSError:  # its owner was faster
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _lock(file: Path, flags: int) -> int | None:
    """A descriptor that holds the lock; None when another process has it, or there is no file."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    except OSError:
        if flags:
            raise
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between the making of a file and its locking somebody may have removed it as abandoned.
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _remove(folder: Path, descriptor: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)
