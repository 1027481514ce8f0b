"""The plan and the result as a user reads them: rows of a table, lines of text, or JSON."""

from __future__ import annotations

from typing import Any

from deepinfer.compiler.build import BuildResult
from deepinfer.compiler.plan import BuildPlan
from deepinfer.compiler.roofline import Roofline
from deepinfer.manifest import Parallelism
from deepinfer.terminal import format_bytes

PLAN_HEADERS = ("PLAN", "", "WHY")


def plan_rows(plan: BuildPlan) -> list[tuple[str, str, str]]:
    """One row for each decision, with its reason, and one for each need, with what there is."""
    source = f"{plan.architecture}, {_count(plan.num_parameters)} parameters"
    rows = [
        ("engine", plan.name, ""),
        ("model", plan.model_id, f"{source}, {plan.source_precision}"),
    ]
    rows += [(_label(choice.name), _number(choice.value), choice.reason) for choice in plan.choices]
    memory, build = plan.memory, plan.build
    parts = (
        f"weights {format_bytes(memory.weight_bytes)}, "
        f"KV cache {format_bytes(memory.kv_cache_bytes)} when full, "
        f"overhead {format_bytes(memory.overhead_bytes)}; "
        f"{format_bytes(memory.usable_bytes)} may be used"
    )
    rows += [
        ("memory to serve", format_bytes(memory.total_bytes) + _each(plan.parallelism), parts),
        _fit_row(plan),
        *_roofline_rows(plan.roofline),
        (
            "memory to build",
            format_bytes(build.memory_bytes),
            f"{format_bytes(build.free_memory_bytes)} are free",
        ),
        (
            "disk to build",
            format_bytes(build.disk_bytes),
            f"{format_bytes(build.free_disk_bytes)} are free",
        ),
    ]
    return rows + [("warning", "", warning) for warning in plan.warnings]


def _fit_row(plan: BuildPlan) -> tuple[str, str, str]:
    memory = plan.memory
    side_by_side = f"{memory.num_full_sequences:,} x {plan.limits.max_seq_len:,} tokens"
    return (
        "largest that fits",
        side_by_side,
        f"full sequences side by side; one alone could have {memory.longest_seq_len:,} tokens",
    )


def _roofline_rows(roofline: Roofline | None) -> list[tuple[str, str, str]]:
    if roofline is None:
        return []
    bound = "upper bound from bandwidth and arithmetic, not a forecast"
    return [
        ("decode, at most", f"{roofline.decode_tokens_per_s:,} tokens/s", f"one stream: {bound}"),
        (
            "full batch, at most",
            f"{roofline.full_batch_tokens_per_s:,} tokens/s",
            f"all streams together: {bound}",
        ),
        ("prefill, at most", f"{roofline.prefill_tokens_per_s:,} tokens/s", f"prompts: {bound}"),
    ]


def _each(parallelism: Parallelism) -> str:
    return f" on each of {parallelism.world_size} GPUs" if parallelism.world_size > 1 else ""


def plan_as_json(plan: BuildPlan) -> dict[str, Any]:
    return {**plan.model_dump(mode="json"), "digest": plan.digest}


def result_lines(result: BuildResult) -> list[str]:
    engine = result.engine
    if result.was_up_to_date:
        built = f"`{engine.path}` is up to date: the same plan and the same checkpoint"
    else:
        build = engine.manifest.build
        built = (
            f"built `{engine.path}` in {build.duration_s:.1f} s, "
            f"peak memory {format_bytes(build.peak_memory_bytes)}, "
            f"{format_bytes(engine.manifest.size_bytes)} on disk"
        )
    return [built, f"serve it: deepinfer serve --engine-dir {engine.path}"]


def result_as_json(plan: BuildPlan, result: BuildResult) -> dict[str, Any]:
    return {
        "status": "up to date" if result.was_up_to_date else "built",
        "path": str(result.engine.path),
        "plan": plan_as_json(plan),
        "engine": result.engine.manifest.model_dump(mode="json"),
    }


def _label(name: str) -> str:
    return name.replace("kv_cache", "KV cache").replace("_", " ")


def _number(value: str) -> str:
    return f"{int(value):,}" if value.isdigit() else value


def _count(number: int) -> str:
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
