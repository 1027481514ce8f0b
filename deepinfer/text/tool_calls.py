"""What a tool-call parser tells of a text that comes in pieces: content, calls, their arguments.

Each format of calls has a parser in `tool_formats`; all keep the same promises, written here. This
module knows neither how a format looks nor what a route makes of the events: a call has an index
and no id.

The parsers read text, so their markers (`ToolFormat.markers`) have to be in it. Some are special
tokens, which a detokeniser leaves out: `<|python_tag|>` in Llama 3.1 and later, `[TOOL_CALLS]`,
`[ARGS]` and `[CALL_ID]` in Mistral's tokenizers. Whoever feeds a parser takes the ids of those
markers out of the hidden ones, for requests with tools only. `<tool_call>` is an added token that
is not special in Qwen2.5 and Qwen3, nor are the tags of GLM, and is spelled in ordinary tokens
elsewhere; where a tokenizer does mark it special, the same holds for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True)
class Content:
    """Text of the answer itself."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """The model calls the tool `name`. Indices count from 0 without gaps."""

    index: int
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """More of a call's arguments; the parts joined are the JSON text as the model wrote it.

    Where a format has tags for them, they are the JSON of what it wrote, typed by the schema.
    """

    index: int
    json_text: str


@dataclass(frozen=True)
class CallEnded:
    """The call is whole: its arguments are a JSON object."""

    index: int


@dataclass(frozen=True)
class CallBroken:
    """The call that had started is none: it broke off or stopped being JSON.

    Its whole text follows as Content, so whoever collects an answer drops the call. A stream that
    has already shown the beginning cannot take it back; the index is not used again.
    """

    index: int


@dataclass(frozen=True)
class CallCut:
    """The answer was not allowed to go on, and ended within the call: its arguments are partial."""

    index: int


Event = Content | CallStarted | ArgumentsDelta | CallEnded | CallBroken | CallCut


class ToolCallParser(Protocol):
    """Reads one answer. The events, joined, are the same however the text is cut into pieces.

    A call starts when its name is known and its arguments have begun; then each `feed` gives every
    character of the arguments that is in the text so far. Text that turns out not to be a call is
    content from the first character that says so. White space around calls belongs to the format;
    all other text is either content or a call. Nothing is raised, whatever the text.
    """

    def feed(self, text: str) -> list[Event]:
        """What `text` adds."""

    def close(self, *, is_cut: bool = False) -> list[Event]:
        """What is left when the answer is over: held text is given back as content.

        With `is_cut` the model was not allowed to go on. Then what a marker has announced is a call
        with as much as there is of its arguments, and nothing if its name is not whole.
        """


class ToolFormat(StrEnum):
    """How a checkpoint writes calls; the values are the names that a user may set."""

    HERMES = "hermes"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"
    MISTRAL_ARGS = "mistral-args"  # the newer `[TOOL_CALLS]name[ARGS]{...}`; one parser reads both
    QWEN_CODER = "qwen3-coder"
    GLM = "glm-4.5"
    # For templates that show none: `plain_tools.py` writes tools and calls into ordinary turns, and
    # calls look as in HERMES.
    GENERIC = "generic"

    @property
    def markers(self) -> tuple[str, ...]:
        """What must not be hidden from the text though it may be a special token."""
        return _MARKERS[self]


_MARKERS = {
    ToolFormat.HERMES: ("<tool_call>", "</tool_call>"),
    ToolFormat.GENERIC: ("<tool_call>", "</tool_call>"),
    ToolFormat.LLAMA3: ("<|python_tag|>",),
    ToolFormat.MISTRAL: ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    ToolFormat.MISTRAL_ARGS: ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    ToolFormat.QWEN_CODER: ("<tool_call>", "</tool_call>"),
    ToolFormat.GLM: (
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
    ),
}
