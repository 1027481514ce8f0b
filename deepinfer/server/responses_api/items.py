"""Items: the units that a conversation of the Responses API is made of, in and out alike.

What a client sends becomes these before anything is done with it, and what a model says is written
in them; so an answer can stand in the input of the next request. Statuses say how far an item got.
"""

from __future__ import annotations

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


class FunctionCallOutputItem(Answer):
    type: Literal["function_call_output"] = "function_call_output"
    id: str
    call_id: str
    output: str
    status: Status = "completed"


class ReasoningItem(Answer):
    type: Literal["reasoning"] = "reasoning"
    id: str
    summary: list[Any] = []  # nobody sums up here what the model thought
    content: list[ReasoningText]
    status: Status = "completed"


OutputItem = MessageItem | FunctionCallItem | ReasoningItem
Item = OutputItem | FunctionCallOutputItem
