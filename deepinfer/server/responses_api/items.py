"""Items: the units that a conversation of the Responses API is made of, in and out alike.

What a client sends becomes these before anything is done with it, and what a model says is written
in them; so an answer can stand in the input of the next request. Statuses say how far an item got.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from deepinfer.server.answers import Answer, TokenLogProb

Status = Literal["in_progress", "completed", "incomplete"]


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid4().hex}"


class InputText(Answer):
    type: Literal["input_text"] = "input_text"
    text: str


class OutputText(Answer):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []  # citations of hosted tools, of which there are none here
    logprobs: list[TokenLogProb] = []


class SummaryText(Answer):
    type: Literal["summary_text"] = "summary_text"
    text: str


class ReasoningText(Answer):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class MessageItem(Answer):
    type: Literal["message"] = "message"
    id: str
    status: Status = "completed"
    role: Literal["system", "developer", "user", "assistant"]
    content: list[InputText | OutputText]

    @property
    def texts(self) -> list[str]:
        return [part.text for part in self.content]


class FunctionCallItem(Answer):
    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status = "completed"


class NamespacedCallItem(FunctionCallItem):
    """A call of a function that the client has put into a namespace."""

    namespace: str


class FunctionCallOutputItem(Answer):
    type: Literal["function_call_output"] = "function_call_output"
    id: str
    call_id: str
    output: str
    status: Status = "completed"


class CustomCallItem(Answer):
    """A call of a tool that takes a text instead of arguments."""

    type: Literal["custom_tool_call"] = "custom_tool_call"
    id: str
    call_id: str
    name: str
    input: str
    status: Status = "completed"


class NamespacedCustomCallItem(CustomCallItem):
    namespace: str


class CustomCallOutputItem(Answer):
    type: Literal["custom_tool_call_output"] = "custom_tool_call_output"
    id: str
    call_id: str
    output: str
    status: Status = "completed"


class ReasoningItem(Answer):
    type: Literal["reasoning"] = "reasoning"
    id: str
    summary: list[SummaryText] = []  # of clients only; no summary is made here
    content: list[ReasoningText]
    status: Status = "completed"

    @property
    def texts(self) -> list[str]:
        return [part.text for part in self.content or self.summary]


class CompactionItem(Answer):
    """What a conversation came to, in a form that only this server reads."""

    type: Literal["compaction"] = "compaction"
    id: str
    encrypted_content: str


CallItem = NamespacedCallItem | FunctionCallItem | NamespacedCustomCallItem | CustomCallItem
CallOutputItem = FunctionCallOutputItem | CustomCallOutputItem
OutputItem = MessageItem | CallItem | ReasoningItem
Item = OutputItem | CallOutputItem | CompactionItem


@dataclass(frozen=True)
class ItemReference:
    """An item of a stored response, named in the input in its place."""

    id: str
