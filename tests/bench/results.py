"""Results of requests and documents by hand, for the tests of reports."""

from __future__ import annotations

from array import array

from deepinfer.bench.client import RequestResult
from deepinfer.bench.report import Document, Load, Objective, Run, summarize


def result(
    *output_at: float,
    started_at: float = 0.0,
    ended_at: float | None = None,
    error: str | None = None,
    **fields: object,
) -> RequestResult:
    times = array("d", output_at)
    defaults: dict[str, object] = {
        "prompt_tokens": 10,
        "output_tokens": len(output_at),
        "max_tokens": len(output_at),
        "counted_by": "usage",
    }
    return RequestResult(
        started_at=started_at,
        ended_at=ended_at if ended_at is not None else (output_at or (started_at + 1.0,))[-1],
        output_at=times.tobytes(),
        error=error,
        **(defaults | fields),  # type: ignore[arg-type]
    )


def run(concurrency: int | None = 4, *, rate_per_s: float | None = None, scale: float = 1.0) -> Run:
    """Two requests whose every time is `scale` times as long."""
    results = [result(0.1 * scale, 0.2 * scale, 0.4 * scale), result(0.2 * scale, 0.3 * scale)]
    return Run(
        load=Load(
            route="completions",
            is_streaming=True,
            concurrency=None if rate_per_s else concurrency,
            rate_per_s=rate_per_s,
            arrivals="poisson" if rate_per_s else None,
            num_requests=2,
            duration_s=None,
            num_warm_up=0,
            input_lengths="128",
            output_lengths="128",
            dataset=None,
            prompts="text",
            prefix_tokens=0,
            num_prefixes=1,
            ignores_eos=False,
            seed=0,
            num_processes=1,
        ),
        summary=summarize(results, 1.0 * scale, Objective(ttft=1.0)),
        client_cpu_share=0.1,
        client_max_lag_s=0.0,
    )


def document(*runs: Run, model: str = "test/model") -> Document:
    return Document(
        created_at="2026-01-01T00:00:00+00:00",
        deepinfer_version="0",
        url="http://127.0.0.1:8000",
        model=model,
        machine="a CPU, 2 CPUs",
        notes=(),
        runs=runs,
    )
