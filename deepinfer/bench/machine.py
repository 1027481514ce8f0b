"""The limits of this CPU: memory bandwidth and matrix multiplication, measured with numpy.

`python -m deepinfer.bench.machine` is the process that measures. It is a separate one, because BLAS
libraries read their number of threads once, when they are loaded.
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

# Far above any cache, and at most a quarter of the available memory.
ARRAY_BYTES = 2**30
MAX_MEMORY_SHARE = 0.25
GEMM_SIZE = 2048
NUM_TRIALS = 7
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class MachineRates(msgspec.Struct, frozen=True, kw_only=True):
    """The best of NUM_TRIALS each."""

    num_threads: int
    read_bytes_per_s: float  # reads every byte once, as a decoding step does
    copy_bytes_per_s: float  # counts bytes read and bytes written
    gemm_flops: float  # float32


def measure_machine(num_threads: int) -> MachineRates:
    """Takes seconds, during which the machine should be idle. Raises BenchError."""
    if find_spec("numpy") is None:
        raise BenchError(
            "measuring this machine needs numpy, which is not installed",
            hint="`pip install 'deepinfer[openvino]'` installs it; `--rates-only` does not need it",
        )
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(num_threads))
    done = subprocess.run(
        [sys.executable, "-m", "deepinfer.bench.machine", str(num_threads)],
        env=environment,
        stdout=subprocess.PIPE,
    )
    if done.returncode != 0:
        raise BenchError("the measurement of this machine failed; its output is above")
    return msgspec.json.decode(done.stdout, type=MachineRates)


def measure(num_threads: int) -> MachineRates:
    """Measure in this process, whose environment must already set this number of threads."""
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
    """The shortest of NUM_TRIALS times, after a run that maps the memory."""
    work()
    times = []
    for _ in range(NUM_TRIALS):
        started_at = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_at)
    return min(times)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(measure(int(sys.argv[1]))))
