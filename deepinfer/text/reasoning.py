"""Splits what a model thinks, `<think> ... </think>`, from what it answers.

The text on both sides is left as it is, line breaks around the markers included, as vLLM's
`deepseek_r1` and `qwen3` parsers leave it. White space before an opening marker is dropped. A
block can only begin the answer: a `<think>` further on is part of what the answer says. A block
that is never closed is reasoning to the end, and there is no content.

Both markers are added tokens that are not special in Qwen3, QwQ and DeepSeek-R1, so they are in
the text; where a tokenizer marks them special, whoever feeds the parser must not hide them. This
module knows nothing of tool calls, which are looked for in the content only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepinfer.text.marker import MarkerFinder
from deepinfer.text.tool_calls import Content

OPENING = "<think>"
CLOSING = "</think>"
# An opening marker that the template does not close at once, as it does where thinking is off.
_STAYS_OPEN = re.compile(r"<think>(?!(?:\s|\\n)*</think>)")


@dataclass(frozen=True)
class Reasoning:
    """Text of the model's thoughts."""

    text: str


@dataclass(frozen=True)
class ReasoningStyle:
    """How a checkpoint thinks.

    `is_opened_by_prompt` says that its generation prompt can end inside a block. Whether one
    prompt does, which may hang on `enable_thinking`, `opens_reasoning` says.
    """

    is_opened_by_prompt: bool


def find_reasoning(chat_template_source: str) -> ReasoningStyle | None:
    """What a chat template tells about thinking; None for a checkpoint that does not think."""
    if OPENING not in chat_template_source and CLOSING not in chat_template_source:
        return None
    _, asked, generation_prompt = chat_template_source.rpartition("add_generation_prompt")
    return ReasoningStyle(bool(asked) and _STAYS_OPEN.search(generation_prompt) is not None)


def opens_reasoning(prompt: str) -> bool:
    """Whether the answer to a rendered prompt begins inside a block."""
    return prompt.rstrip().endswith(OPENING)


class ReasoningParser:
    """Reads one answer. The events, joined, are the same however the text is cut into pieces.

    Nothing of a marker is given out, and only what may still become one is held back.
    """

    def __init__(self, *, is_open: bool) -> None:
        """`is_open` says that the prompt has opened the block already."""
        self._is_open = is_open
        self._is_at_start = True
        self._held = ""
        self._closing = MarkerFinder(CLOSING)

    def feed(self, text: str) -> list[Reasoning | Content]:
        """What `text` adds."""
        if self._is_at_start:
            text = self._pass_opening(text)
        if not self._is_open:
            return _events("", text)
        return self._read_block(text)

    def close(self) -> list[Reasoning | Content]:
        """What was held back and is no marker."""
        held = self._held + self._closing.finish()
        self._held = ""
        return _events(held, "") if self._is_open else _events("", held)

    def _pass_opening(self, text: str) -> str:
        """The text after the opening marker, or all of it when there is none."""
        self._held += text
        begun = self._held.lstrip()
        if len(begun) < len(OPENING) and OPENING.startswith(begun):
            return ""
        self._is_at_start = False
        text, self._held = self._held, ""
        if not begun.startswith(OPENING):
            return text
        self._is_open = True
        return begun[len(OPENING) :]

    def _read_block(self, text: str) -> list[Reasoning | Content]:
        thought, answer = self._closing.push(text)
        self._is_open = answer is None
        return _events(thought, answer or "")


def _events(thought: str, answer: str) -> list[Reasoning | Content]:
    events: list[Reasoning | Content] = []
    if thought:
        events.append(Reasoning(thought))
    if answer:
        events.append(Content(answer))
    return events
