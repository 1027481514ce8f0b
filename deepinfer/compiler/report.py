"""The plan and the result as a user reads them: rows of a table, lines of text, or JSON."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from deepinfer.compiler.build import BuildResult
from deepinfer.compiler.plan_types import BuildPlan, PrecisionEstimate, Roofline
from deepinfer.terminal import format_bytes

PLAN_HEADERS = ("PLAN", "", "WHY")
COMPARISON_HEADERS = (
    *("PRECISION", "KV CACHE", "MEMORY", "WEIGHTS", "FULL SEQUENCES", "BATCH"),
    *("DECODE", "FULL BATCH", "PREFILL", "NOTE"),
)


def plan_rows(plan: BuildPlan) -> list[tuple[str, str, str]]:
    """One row for each decision, with its reason, and one for each need, with what there is."""
    source = f"{plan.architecture}, {_count(plan.num_parameters)} parameters"
    rows = [
        ("engine", plan.name, ""),
        ("model", plan.model_id, f"{source}, {plan.source_precision}"),
    ]
    for choice in plan.choices:
        label = choice.name.replace("kv_cache", "KV cache").replace("_", " ")
        value = f"{int(choice.value):,}" if choice.value.isdigit() else choice.value
        rows.append((label, value, choice.reason))
    memory, build = plan.memory, plan.build
    parts = (
        f"weights {format_bytes(memory.weight_bytes)}, "
        f"KV cache {format_bytes(memory.kv_cache_bytes)} when full, "
        f"overhead {format_bytes(memory.overhead_bytes)}; "
        f"{format_bytes(memory.usable_bytes)} may be used"
    )
    num_gpus = plan.parallelism.world_size
    each = f" on each of {num_gpus} GPUs" if num_gpus > 1 else ""
    rows += [
        ("memory to serve", format_bytes(memory.total_bytes) + each, parts),
        (
            "largest that fits",
            f"{memory.num_full_sequences:,} x {plan.limits.max_seq_len:,} tokens",
            f"full sequences side by side; one alone could have {memory.longest_seq_len:,} tokens",
        ),
        *_roofline_rows(plan.roofline),
        *(_alternative_row(estimate) for estimate in plan.alternatives),
        (
            "RAM to build",
            format_bytes(build.memory_bytes),
            f"of the host that builds, {format_bytes(build.min_memory_bytes)} at least; "
            f"{format_bytes(build.free_memory_bytes)} are free here",
        ),
        (
            "disk to build",
            format_bytes(build.disk_bytes),
            f"{format_bytes(build.free_disk_bytes)} are free here",
        ),
    ]
    return rows + [("warning", "", warning) for warning in plan.warnings]


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


def _alternative_row(estimate: PrecisionEstimate) -> tuple[str, str, str]:
    label = f"alternative {estimate.precision}"
    memory, limits, roofline = estimate.memory, estimate.limits, estimate.roofline
    if memory is None or limits is None:
        return (label, "", estimate.obstacle or "")
    numbers = f"{memory.num_full_sequences:,} x {limits.max_seq_len:,} tokens"
    if roofline is not None:
        numbers += (
            f"; at most {roofline.decode_tokens_per_s:,} tokens/s for one stream, "
            f"{roofline.full_batch_tokens_per_s:,} for a full batch"
        )
    return (label, format_bytes(memory.total_bytes), numbers)


def comparison_rows(
    estimates: Sequence[PrecisionEstimate], chosen: str | None
) -> list[tuple[str, ...]]:
    """One row for each precision, with upper bounds of speeds in tokens per second."""
    return [_comparison_row(estimate, chosen) for estimate in estimates]


def _comparison_row(estimate: PrecisionEstimate, chosen: str | None) -> tuple[str, ...]:
    memory, limits, roofline = estimate.memory, estimate.limits, estimate.roofline
    if memory is None or limits is None:
        return (estimate.precision, *[""] * (len(COMPARISON_HEADERS) - 2), estimate.obstacle or "")
    bounds = ("", "", "")
    if roofline is not None:
        bounds = (
            f"<= {roofline.decode_tokens_per_s:,}",
            f"<= {roofline.full_batch_tokens_per_s:,}",
            f"<= {roofline.prefill_tokens_per_s:,}",
        )
    return (
        estimate.precision,
        estimate.kv_cache_precision or "",
        format_bytes(memory.total_bytes),
        format_bytes(memory.weight_bytes),
        f"{memory.num_full_sequences:,} x {limits.max_seq_len:,} tokens",
        f"{limits.max_batch_size:,}",
        *bounds,
        "chosen by the plan" if estimate.precision == chosen else "",
    )


def plan_as_json(plan: BuildPlan) -> dict[str, Any]:
    return {**plan.model_dump(mode="json"), "digest": plan.digest}


def result_lines(plan: BuildPlan, result: BuildResult) -> list[str]:
    engine = result.engine
    if result.was_up_to_date:
        built = f"`{engine.path}` is up to date: the same plan and the same checkpoint"
        if engine.manifest.limits != plan.limits:
            limits = engine.manifest.limits
            built += (
                f"; other memory was free when it was built, for {limits.max_seq_len:,} tokens and "
                f"{limits.max_batch_size:,} sequences: `--force` fits it anew"
            )
    else:
        build = engine.manifest.build
        built = (
            f"built `{engine.path}` in {build.duration_s:.1f} s, "
            f"peak memory {format_bytes(build.peak_memory_bytes)}, "
            f"{format_bytes(engine.manifest.size_bytes)} on disk"
        )
    return [built, f"serve it: deepinfer serve --engine-dir {shlex.quote(str(engine.path))}"]


def result_as_json(plan: BuildPlan, result: BuildResult) -> dict[str, Any]:
    return {
        "status": "up to date" if result.was_up_to_date else "built",
        "path": str(result.engine.path),
        "plan": plan_as_json(plan),
        "engine": result.engine.manifest.model_dump(mode="json"),
    }


def _count(number: int) -> str:
    for size, unit in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
