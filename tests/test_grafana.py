"""The dashboard asks for nothing that the server does not say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deepinfer.engine import Capacity
from deepinfer.generation import FinishReason
from deepinfer.server.metrics import make_registry
from tests.server.watched import make_state

DASHBOARD = Path(__file__).parent.parent / "docs" / "grafana" / "deepinfer.json"
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless"}
NAME = r"[A-Za-z_:][A-Za-z0-9_:]*"


def expressions(node: Any) -> Iterator[str]:
    """Every query of the dashboard, those that fill its variables included."""
    if isinstance(node, list):
        for item in node:
            yield from expressions(item)
    elif isinstance(node, dict):
        yield from (node[key] for key in ("expr", "definition") if isinstance(node.get(key), str))
        for item in node.values():
            yield from expressions(item)


def metrics_of(expression: str) -> set[str]:
    """The names that are metrics: not functions, labels, keywords or what stands in brackets."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"label_values\(([^,]*),[^)]*\)", r"\1", bare)
    bare = re.sub(rf"{NAME}\s*\(", "(", bare)
    return set(re.findall(rf"(?<![\w:.]){NAME}", bare)) - WORDS


EVERY_QUERY = pytest.mark.parametrize(
    "query",
    sorted(set(expressions(json.loads(DASHBOARD.read_text(encoding="utf-8"))))),
    ids=lambda query: "+".join(sorted(metrics_of(query))),
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The names of all that a server with a history says, each with its labels."""
    state, engine = make_state(tmp_path_factory.mktemp("engines") / "echo")
    engine.capacity = Capacity(8, num_blocks=1, tokens_per_block=1)
    state.engines.default.meter.num_finished[FinishReason.STOP] += 1
    state.meter.num_responses["/", 200] += 1
    state.meter.num_errors["/", "internal_error"] += 1
    state.meter.num_by_key["alice"] += 1
    state.meter.tokens_by_key["alice", "prompt"] += 1
    text = generate_latest(make_registry(state.engines, state.meter)).decode()
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_names_are_found_in_an_expression() -> None:
    asked = 'sum by (le, x) (rate(a_bucket{job=~"$job"}[$__rate_interval])) / max(b_total) * 1e3'
    assert metrics_of(asked) == {"a_bucket", "b_total"}
    assert metrics_of('label_values(c_info{job=~"$job"}, model_name)') == {"c_info"}


@EVERY_QUERY
def test_query_names_metrics_that_exist(query: str, samples: dict[str, set[str]]) -> None:
    asked = metrics_of(query)
    assert asked and asked <= samples.keys(), asked - samples.keys()


@EVERY_QUERY
def test_query_selects_and_groups_by_labels_that_exist(
    query: str, samples: dict[str, set[str]]
) -> None:
    known = {"job", "instance"}.union(*(samples[name] for name in metrics_of(query)))
    grouped = ",".join(re.findall(r"\bby\s*\(([^)]*)\)", query))
    selected = {
        label
        for _, labels in re.findall(rf"({NAME})\{{([^}}]*)\}}", query)
        for label in re.findall(rf"({NAME})\s*(?:=|!)", labels)
    }
    assert selected | {label.strip() for label in grouped.split(",") if label.strip()} <= known


def test_every_panel_asks_for_something() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    empty = [one["title"] for one in panels if one["type"] != "row" and not one["targets"]]
    assert len(panels) > 10 and not empty
    assert len({one["id"] for one in panels}) == len(panels)
