"""Items that are being written: a text that grows or a call whose arguments grow.

Each kind knows how it begins, grows and ends, as events and as the item that is left. When one is
begun and ended is for `writer.py` to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deepinfer.server.answers import TokenLogProb
from deepinfer.server.log_probs import as_chat
from deepinfer.server.responses_api.events import (
    ArgumentsDelta,
    ArgumentsDone,
    CustomInputDelta,
    CustomInputDone,
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    TextDelta,
    TextDone,
)
from deepinfer.server.responses_api.items import (
    CustomCallItem,
    FunctionCallItem,
    MessageItem,
    NamespacedCallItem,
    NamespacedCustomCallItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Status,
    new_id,
)
from deepinfer.server.responses_api.tools import read_custom_input
from deepinfer.text.scores import PlacedToken


@dataclass
class OpenMessage:
    index: int  # of the item in the output
    id: str = field(default_factory=lambda: new_id("msg"))
    _texts: list[str] = field(default_factory=list)
    _log_probs: list[dict[str, Any]] = field(default_factory=list)

    def begin(self) -> list[Event]:
        item = MessageItem(id=self.id, status="in_progress", role="assistant", content=[])
        part = OutputText(text="")
        return [
            ItemAdded(output_index=self.index, item=item),
            PartAdded(item_id=self.id, output_index=self.index, part=part),
        ]

    def add(self, text: str, tokens: Sequence[PlacedToken]) -> list[Event]:
        log_probs = as_chat(tokens)["content"]
        self._texts.append(text)
        self._log_probs += log_probs
        delta = TextDelta(item_id=self.id, output_index=self.index, delta=text, logprobs=log_probs)
        return [delta]

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        text = "".join(self._texts)
        log_probs = [TokenLogProb(**one) for one in self._log_probs]
        part = OutputText(text=text, logprobs=log_probs)
        item = MessageItem(id=self.id, status=status, role="assistant", content=[part])
        at: dict[str, Any] = {"item_id": self.id, "output_index": self.index}
        return item, [
            TextDone(text=text, logprobs=self._log_probs, **at),
            PartDone(part=part, **at),
            ItemDone(output_index=self.index, item=item),
        ]


@dataclass
class OpenReasoning:
    index: int
    id: str = field(default_factory=lambda: new_id("rs"))
    _texts: list[str] = field(default_factory=list)

    def begin(self) -> list[Event]:
        item = ReasoningItem(id=self.id, status="in_progress", content=[])
        part = ReasoningText(text="")
        return [
            ItemAdded(output_index=self.index, item=item),
            PartAdded(item_id=self.id, output_index=self.index, part=part),
        ]

    def add(self, text: str) -> list[Event]:
        self._texts.append(text)
        return [ReasoningDelta(item_id=self.id, output_index=self.index, delta=text)]

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        part = ReasoningText(text="".join(self._texts))
        item = ReasoningItem(id=self.id, status=status, content=[part])
        at: dict[str, Any] = {"item_id": self.id, "output_index": self.index}
        return item, [
            ReasoningDone(text=part.text, **at),
            PartDone(part=part, **at),
            ItemDone(output_index=self.index, item=item),
        ]


@dataclass
class OpenCall:
    index: int
    call_index: int  # of the call among those of the answer
    call_id: str
    name: str
    namespace: str | None = None
    id: str = field(default_factory=lambda: new_id("fc"))
    _texts: list[str] = field(default_factory=list)

    def begin(self) -> list[Event]:
        return [ItemAdded(output_index=self.index, item=self._item("in_progress"))]

    def add(self, arguments: str) -> list[Event]:
        self._texts.append(arguments)
        return [ArgumentsDelta(item_id=self.id, output_index=self.index, delta=arguments)]

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        item = self._item(status)
        done = ArgumentsDone(
            item_id=self.id, output_index=self.index, name=self.name, arguments=item.arguments
        )
        return item, [done, ItemDone(output_index=self.index, item=item)]

    def _item(self, status: Status) -> FunctionCallItem:
        item = FunctionCallItem(
            id=self.id,
            call_id=self.call_id,
            name=self.name,
            arguments="".join(self._texts),
            status=status,
        )
        if self.namespace is None:
            return item
        return NamespacedCallItem(**dict(item), namespace=self.namespace)


@dataclass
class OpenCustomCall:
    """A call of a tool that takes a text, which is read out of the arguments in the end."""

    index: int
    call_index: int
    call_id: str
    name: str
    namespace: str | None = None
    id: str = field(default_factory=lambda: new_id("ctc"))
    _texts: list[str] = field(default_factory=list)

    def begin(self) -> list[Event]:
        return [ItemAdded(output_index=self.index, item=self._item("", "in_progress"))]

    def add(self, arguments: str) -> list[Event]:
        self._texts.append(arguments)
        return []

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        text = read_custom_input("".join(self._texts))
        item = self._item(text, status)
        at: dict[str, Any] = {"item_id": self.id, "output_index": self.index}
        return item, [
            *([CustomInputDelta(delta=text, **at)] if text else []),
            CustomInputDone(input=text, **at),
            ItemDone(output_index=self.index, item=item),
        ]

    def _item(self, text: str, status: Status) -> CustomCallItem:
        item = CustomCallItem(
            id=self.id, call_id=self.call_id, name=self.name, input=text, status=status
        )
        if self.namespace is None:
            return item
        return NamespacedCustomCallItem(**dict(item), namespace=self.namespace)


OpenItem = OpenMessage | OpenReasoning | OpenCall | OpenCustomCall
