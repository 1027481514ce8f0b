"""Where the time of one decode step goes inside the CPU library, by its own counters.

    .venv/bin/python benchmarks/decode_profile.py --engine engines/mine

The engine's model runs alone, one sequence, with the engine's settings and the library's counters
on. For multiplications by weights it says at what rate the weights are read, beside what this
machine's memory gives: the one is as good as can be when it is near the other.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import openvino as ov

from deepinfer.bench.machine import measure_machine
from deepinfer.device import read_machine
from deepinfer.manifest import EngineFolder, read_engine

PAYLOAD_MODEL = "openvino_model.xml"
PROMPT_LEN = 32
WARM_UP_STEPS = 4
OUTPUT_LAYER = "lm_head"


@dataclass
class Group:
    """Nodes of the graph that do the same."""

    seconds: float = 0.0  # of one step
    weight_bytes: int = 0


class DecodingModel:
    """One sequence, a token a step."""

    def __init__(self, engine: EngineFolder) -> None:
        settings = engine.manifest.backend.settings
        self.model = ov.Core().read_model(engine.payload_dir / PAYLOAD_MODEL)
        properties = {
            "PERF_COUNT": True,
            "INFERENCE_PRECISION_HINT": settings["inference_precision"],
            "KV_CACHE_PRECISION": settings["kv_cache_precision"],
        }
        compiled = ov.Core().compile_model(self.model, "CPU", properties)
        self._request = compiled.create_infer_request()
        self._length = 0
        self.step(*range(300, 300 + PROMPT_LEN))

    def step(self, *token_ids: int) -> float:
        """Seconds."""
        begin, end = self._length, self._length + len(token_ids)
        self._length = end
        inputs = {
            "input_ids": np.array([token_ids], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(begin, end, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        started_at = time.perf_counter()
        self._request.infer(inputs)
        return time.perf_counter() - started_at

    def read_counters(self) -> Iterator[tuple[str, str, str, float]]:
        """Name, type, kernel and seconds of each node that ran in the last step."""
        for node in self._request.get_profiling_info():
            if node.status == node.Status.EXECUTED:
                yield node.node_name, node.node_type, node.exec_type, node.real_time.total_seconds()


def read_weight_bytes(model: Any) -> dict[str, int]:
    """By the name of each multiplication, the bytes of the constants that it multiplies by."""
    sizes: dict[str, int] = {}
    for node in model.get_ops():
        if node.get_type_name() == "MatMul":
            constants = _constants_above(node.input_value(1).get_node())
            sizes[node.get_friendly_name()] = sum(constants)
    return sizes


def _constants_above(node: Any) -> Iterator[int]:
    kind = node.get_type_name()
    if kind == "Constant":
        yield node.get_byte_size()
    elif kind in ("Convert", "Subtract", "Multiply", "Reshape"):  # how weights are decompressed
        for value in node.input_values():
            yield from _constants_above(value.get_node())


def profile(model: DecodingModel, num_steps: int) -> tuple[dict[str, Group], float]:
    """The groups, and the mean of a step's seconds by the clock."""
    weights = read_weight_bytes(model.model)
    for token_id in range(WARM_UP_STEPS):
        model.step(400 + token_id)
    groups: dict[str, Group] = defaultdict(Group)
    clock: list[float] = []
    for token_id in range(num_steps):
        clock.append(model.step(500 + token_id))
        for name, kind, kernel, seconds in model.read_counters():
            size = weights.get(name, 0)
            if not size:
                group = groups[f"{kind}"]
            else:
                where = "output layer" if OUTPUT_LAYER in name else "layers"
                group = groups[f"weights of the {where} ({kernel})"]
            group.seconds += seconds / num_steps
            group.weight_bytes += size
    for group in groups.values():
        group.weight_bytes //= num_steps
    return dict(groups), fmean(clock)


def show(groups: dict[str, Group], step_s: float, read_bytes_per_s: float) -> str:
    lines = [
        "| | ms | share | weights, MB | weights read, GB/s | of the memory's rate |",
        "|---|---|---|---|---|---|",
    ]
    known_s = sum(group.seconds for group in groups.values())
    rows = sorted(groups.items(), key=lambda item: -item[1].seconds)
    rows.append(("between the nodes", Group(max(step_s - known_s, 0.0))))
    for name, group in rows:
        if group.seconds < 0.001 * step_s:
            continue
        row = f"| {name} | {group.seconds * 1e3:.2f} | {group.seconds / step_s:.1%} |"
        if group.weight_bytes:
            rate = group.weight_bytes / group.seconds
            row += f" {group.weight_bytes / 1e6:.0f} | {rate / 1e9:.1f} |"
            row += f" {rate / read_bytes_per_s:.0%} |"
        else:
            row += " | | |"
        lines.append(row)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", type=Path, required=True, help="an engine for the CPU")
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    cpu = read_machine().cpu
    rates = measure_machine(cpu.num_threads)
    groups, step_s = profile(DecodingModel(read_engine(arguments.engine)), arguments.steps)
    print(
        f"{cpu.name}, {cpu.num_threads} CPUs; memory gives {rates.read_bytes_per_s / 1e9:.1f} GB/s"
    )
    print(f"a step takes {step_s * 1e3:.1f} ms, which is {1 / step_s:.1f} tokens/s\n")
    print(show(groups, step_s, rates.read_bytes_per_s))


if __name__ == "__main__":
    main()
