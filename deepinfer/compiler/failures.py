"""What libraries and the system raise during a build, as one line with a way out."""

from __future__ import annotations

import errno
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepinfer.errors import BuildError, DeepInferError

FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_DISK_BYTES = 1_000_000  # less than this is free when native code fails without saying why
NATIVE_WRITE_ERROR = "iostream error"  # all that C++ says when a write fails
GPU_MEMORY = re.compile(r"CUDA out of memory|cudaErrorMemoryAllocation|CUDA error: out of memory")
# transformers, of a model type that only code in the checkpoint's folder knows.
UNKNOWN_MODEL_TYPE = re.compile(
    r"does not recognize this architecture|Unrecognized model|trust_remote_code=True"
)


class UnexpectedBuildError(BuildError):
    """A library failed in an unknown way; its last output is shown."""


@contextmanager
def errors_translated(name: str, output: Path) -> Iterator[None]:
    """Raise whatever fails inside as a DeepInferError about the build of `name` into `output`."""
    try:
        yield
    except DeepInferError:
        raise
    except MemoryError as error:
        raise UnexpectedBuildError(
            f"the build of `{name}` ran out of memory", hint="close other programs, or add swap"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if _is_disk_full(error, output):
            raise BuildError(
                f"the disk is full: `{output}` cannot hold the build of `{name}`",
                hint="free some, or choose another disk with `--output`",
            ) from error
        if GPU_MEMORY.search(reason):
            raise UnexpectedBuildError(
                f"the build of `{name}` ran out of GPU memory",
                hint="stop other programs that use the GPU (`nvidia-smi` lists them), or choose a "
                "smaller `--max-seq-len` or `--max-batch-size`",
            ) from error
        if UNKNOWN_MODEL_TYPE.search(reason):
            raise UnexpectedBuildError(
                f"the build of `{name}` failed: {reason}",
                hint="`--trust-remote-code` runs the Python code in the checkpoint's folder",
            ) from error
        raise UnexpectedBuildError(
            f"the build of `{name}` failed: {reason}",
            hint="`deepinfer --verbose build ...` shows what the libraries print",
        ) from error


def describe_death(name: str, status: int) -> UnexpectedBuildError:
    """The error for a compiler process that ended without a report.

    `status` is its exit status; negative, the signal that ended it.
    """
    if status == -signal.SIGKILL:
        return UnexpectedBuildError(
            f"the build of `{name}` was killed by the system, most likely for lack of memory",
            hint="close other programs or add swap; `dmesg` names what the kernel killed",
        )
    if status < 0:
        try:
            how = f"crashed with {signal.Signals(-status).name}"
        except ValueError:
            how = f"was ended by signal {-status}"
    else:
        how = f"ended with status {status}"
    return UnexpectedBuildError(
        f"the build of `{name}` failed: the compiler process {how}",
        hint="its last output is above; please report it with the engine's plan",
    )


def _is_disk_full(error: Exception, output: Path) -> bool:
    if isinstance(error, OSError) and error.errno in FULL_DISK_ERRNOS:
        return True
    if NATIVE_WRITE_ERROR in str(error):
        return True
    return shutil.disk_usage(output).free < FULL_DISK_BYTES
