"""Calls and JSON that a client of /v1/messages requires, from a model without sense of either."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import jsonschema
import pytest
from pydantic import BaseModel

from tests.building import BuildEngine
from tests.server.messaging import LISTING_TEMPLATE, WEATHER, messages_client, user
from tests.server.serving import serving

CLOCK: dict[str, Any] = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}


class Fact(BaseModel):
    is_true: bool
    year: int


def write_template(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(LISTING_TEMPLATE, encoding="utf-8")


@pytest.fixture(scope="module")
def sdk(build_engine: BuildEngine) -> Iterator[anthropic.Anthropic]:
    built = build_engine("llama", "fp32", "--max-batch-size", "4", edit_checkpoint=write_template)
    with serving(built.engine.path) as server, messages_client(server) as client:
        yield client


def ask(client: anthropic.Anthropic, **fields: Any) -> anthropic.types.Message:
    body = {"model": client.models.list().data[0].id, "max_tokens": 100, "messages": [user("hi")]}
    answer: anthropic.types.Message = client.messages.create(**body, **fields)
    return answer


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_required_call_cannot_fail(sdk: anthropic.Anthropic, choice: dict[str, Any]) -> None:
    tools = [WEATHER] if choice["type"] == "any" else [CLOCK, WEATHER]
    choice = {**choice, "disable_parallel_tool_use": True}
    answer = ask(sdk, tools=tools, tool_choice=choice, thinking={"type": "adaptive"})
    (call,) = answer.content
    assert call.type == "tool_use" and call.name == "get_weather"
    jsonschema.validate(call.input, WEATHER["input_schema"])
    assert answer.stop_reason == "tool_use"


@pytest.mark.parametrize("form", ["output_config", "output_format"])
def test_answer_fits_its_schema(sdk: anthropic.Anthropic, form: str) -> None:
    schema = {"type": "json_schema", "schema": WEATHER["input_schema"]}
    fields = {"output_config": {"format": schema}} if form == "output_config" else {form: schema}
    (block,) = ask(sdk, extra_body=fields).content
    assert block.type == "text"
    jsonschema.validate(json.loads(block.text), WEATHER["input_schema"])


def test_sdk_parses_the_answer(sdk: anthropic.Anthropic) -> None:
    answer = sdk.messages.parse(
        model=sdk.models.list().data[0].id,
        max_tokens=100,
        messages=[{"role": "user", "content": "hi"}],
        output_format=Fact,
    )
    assert isinstance(answer.parsed_output, Fact)


def test_schema_that_cannot_be_enforced_is_refused(sdk: anthropic.Anthropic) -> None:
    tool = {"name": "f", "input_schema": {"type": "object", "not": {}}}
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(sdk, tools=[tool], tool_choice={"type": "any"})
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["error"]["param"] == "tools[0].input_schema.not"
    assert "`f`" in refused.value.body["error"]["message"]
