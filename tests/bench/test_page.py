"""The page about benchmarks names every field of the reports."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from deepinfer.bench.engine import Bounds, EngineReport, Point, Trial
from deepinfer.bench.machine import MachineRates
from deepinfer.bench.report import Document, Goodput, Load, Objective, Percentiles, Run, Summary

PAGE = (Path(__file__).parents[2] / "docs" / "benchmarking.md").read_text(encoding="utf-8")
SERVE = (Document, Run, Load, Summary, Percentiles, Goodput, Objective)
ENGINE = (EngineReport, Point, Trial, Bounds, MachineRates)


@pytest.mark.parametrize("kind", [*SERVE, *ENGINE], ids=lambda kind: kind.__name__)
def test_page_names_every_field(kind: type[msgspec.Struct]) -> None:
    names = kind.__struct_fields__
    missing = [n for n in names if f"`{n}`" not in PAGE and f"`runs[].{n}`" not in PAGE]
    assert [name for name in missing if name != "runs"] == []
