"""What this CPU can do at most: bytes a second from memory, and products a second of matrices.

Measured in a process of its own, `python -m deepinfer.bench.machine`, because the library that
multiplies matrices reads its number of threads when it is loaded. numpy is needed for both.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import msgspec

from deepinfer.device import read_machine
from deepinfer.errors import BenchError

# Far above any cache, and no more than a quarter of what the process may take.
ARRAY_BYTES = 2**30
MAX_MEMORY_SHARE = 0.25
GEMM_SIZE = 2048
NUM_TRIALS = 7
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class MachineRates(msgspec.Struct, frozen=True, kw_only=True):
    """The best of several trials each."""

    num_threads: int
    read_bytes_per_s: float  # every byte read once, as the weights are in a step
    copy_bytes_per_s: float  # bytes read and bytes written, both counted
    gemm_flops: float  # float32


def measure_machine(num_threads: int) -> MachineRates:
    """Takes seconds, in which the machine should do nothing else. Raises BenchError."""
    if find_spec("numpy") is None:
        raise BenchError(
            "measuring this machine needs numpy, which is not installed",
            hint="`pip install 'deepinfer[openvino]'` brings it; `--rates-only` goes without",
        )
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(num_threads))
    done = subprocess.run(
        [sys.executable, "-m", "deepinfer.bench.machine", str(num_threads)],
        env=environment,
        stdout=subprocess.PIPE,
    )
    if done.returncode != 0:
        raise BenchError("the measurement of this machine failed; its last words are above")
    return msgspec.json.decode(done.stdout, type=MachineRates)


def measure(num_threads: int) -> MachineRates:
    """In this process, which must have been started for so many threads."""
    import numpy as np

    num_bytes = min(ARRAY_BYTES, int(read_machine().available_memory_bytes * MAX_MEMORY_SHARE))
    length = num_bytes // 2 // np.dtype(np.float32).itemsize // num_threads
    pairs = [(np.ones(length, np.float32), np.ones(length, np.float32)) for _ in range(num_threads)]
    moved_bytes = 2 * length * np.dtype(np.float32).itemsize * num_threads
    left, right = (np.ones((GEMM_SIZE, GEMM_SIZE), np.float32) for _ in range(2))
    with ThreadPoolExecutor(num_threads) as pool:

        def read() -> None:
            # One array against another: each byte of both is read once. Products of vectors as
            # long as these run on the calling thread alone, without the interpreter's lock.
            list(pool.map(lambda pair: np.dot(*pair), pairs))

        def copy() -> None:
            list(pool.map(lambda pair: np.copyto(*pair), pairs))

        return MachineRates(
            num_threads=num_threads,
            read_bytes_per_s=moved_bytes / _best_s(read),
            copy_bytes_per_s=moved_bytes / _best_s(copy),
            gemm_flops=2 * GEMM_SIZE**3 / _best_s(lambda: np.matmul(left, right)),
        )


def _best_s(work: Callable[[], object]) -> float:
    """The shortest of several times; the first, in which memory is mapped, does not count."""
    work()
    return min(_time_s(work) for _ in range(NUM_TRIALS))


def _time_s(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measure(int(sys.argv[1]))))
