"""`context_management`: what a client wants cleared from a conversation that has grown long.

What becomes of it is in `clearing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from deepinfer.server.messages_api.blocks import MAX_SHOWN_KIND
from deepinfer.server.schema_base import Schema, invalid, unsupported
from deepinfer.server.schemas import INT32_MAX, MAX_TOOLS

MAX_EDITS = 16
# Anthropic's own, where a client names none.
DEFAULT_CLEARING_TOKENS = 100_000
DEFAULT_KEPT_TOOL_USES = 3
DEFAULT_KEPT_THINKING_TURNS = 1
DEFAULT_COMPACTING_TOKENS = 150_000


@dataclass(frozen=True)
class Amount:
    """So many tokens of the prompt, calls of tools, or turns with thoughts."""

    type: str
    value: int


def _parse_amount(value: object, kinds: tuple[str, ...]) -> Amount:
    if not isinstance(value, Mapping):
        raise invalid(f'must be an object such as {{"type": "{kinds[0]}", "value": 5}}')
    if value.get("type") not in kinds:
        known = ", ".join(f"`{kind}`" for kind in kinds)
        raise unsupported(f"may be {known}", "type")
    number = value.get("value")
    if isinstance(number, float) and number.is_integer():  # an integer in JSON Schema, as 5.0
        number = int(number)
    if type(number) is not int or not 0 <= number <= INT32_MAX:
        raise invalid("must be an integer of 0 or more", "value")
    return Amount(str(value["type"]), number)


def _describe_amount(*kinds: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", "value"],
        "properties": {
            "type": {"enum": list(kinds)},
            "value": {"type": "integer", "minimum": 0, "maximum": INT32_MAX},
        },
    }


def _amount(*kinds: str) -> tuple[PlainValidator, WithJsonSchema]:
    def parse(value: object) -> Amount | None:
        # A default, and null where there is none, have been read already.
        return value if isinstance(value, Amount | None) else _parse_amount(value, kinds)

    return PlainValidator(parse), WithJsonSchema(_describe_amount(*kinds))


def _parse_kept_thoughts(value: object) -> Amount | None:
    """None for all of them."""
    if value == "all" or (isinstance(value, Mapping) and value.get("type") == "all"):
        return None
    if isinstance(value, Amount):
        return value
    return _parse_amount(value, ("thinking_turns",))


KeptThoughts = Annotated[
    Amount | None,
    PlainValidator(_parse_kept_thoughts),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["all"]},
                {
                    "type": "object",
                    "required": ["type"],
                    "properties": {"type": {"enum": ["all"]}},
                },
                _describe_amount("thinking_turns"),
            ]
        }
    ),
]
_Trigger = _amount("input_tokens", "tool_uses")
_InputTokens = _amount("input_tokens")
_ToolUses = _amount("tool_uses")


class ClearToolUses(Schema):
    """Clear the results of the oldest calls, once there is much in the prompt."""

    type: Literal["clear_tool_uses_20250919"]
    trigger: Annotated[Amount, *_Trigger] = Amount("input_tokens", DEFAULT_CLEARING_TOKENS)
    keep: Annotated[Amount, *_ToolUses] = Amount("tool_uses", DEFAULT_KEPT_TOOL_USES)
    clear_at_least: Annotated[Amount | None, *_InputTokens] = None
    clear_tool_inputs: bool | list[str] = False
    exclude_tools: list[str] = Field(default_factory=list, max_length=MAX_TOOLS)

    def clears_input_of(self, tool: str) -> bool:
        cleared = self.clear_tool_inputs
        return cleared if isinstance(cleared, bool) else tool in cleared


class ClearThinking(Schema):
    """Clear the thoughts of all turns but the last."""

    type: Literal["clear_thinking_20251015"]
    keep: KeptThoughts = Amount("thinking_turns", DEFAULT_KEPT_THINKING_TURNS)


class Compact(Schema):
    """Sum up the conversation once the prompt is long, which this server does not."""

    type: Literal["compact_20260112"]
    trigger: Annotated[Amount, *_InputTokens] = Amount("input_tokens", DEFAULT_COMPACTING_TOKENS)


Edit = ClearToolUses | ClearThinking | Compact
KINDS: Mapping[str, type[Edit]] = {
    "clear_tool_uses_20250919": ClearToolUses,
    "clear_thinking_20251015": ClearThinking,
    "compact_20260112": Compact,
}


def _parse_edit(value: object) -> Edit:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(kind, str):
        raise invalid('must be an object such as {"type": "clear_tool_uses_20250919"}')
    if kind not in KINDS:
        known = ", ".join(f"`{name}`" for name in KINDS)
        raise unsupported(f"may be {known}; `{kind[:MAX_SHOWN_KIND]}` is not supported", "type")
    return KINDS[kind].model_validate(value)


class ContextManagement(Schema):
    edits: list[
        Annotated[
            Edit,
            PlainValidator(_parse_edit),
            WithJsonSchema({"anyOf": [kind.model_json_schema() for kind in KINDS.values()]}),
        ]
    ] = Field(
        default_factory=list,
        max_length=MAX_EDITS,
        description="`clear_tool_uses_20250919`, `clear_thinking_20251015`, and "
        "`compact_20260112` as long as its threshold is not reached",
    )
