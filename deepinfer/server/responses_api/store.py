"""Responses kept for a while, so that they can be read again and gone on from.

In memory of this process, bounded by number and by size; those that nobody has asked for the
longest are dropped first. Whoever presents another key than the one who made a response finds
nothing under its id. The store knows no HTTP and renders nothing.
"""

from __future__ import annotations

import itertools
import sys
from collections import OrderedDict
from dataclasses import dataclass

from pydantic import BaseModel

from deepinfer.server.responses_api.items import Item

# Agents go on from their last few responses; this is hours of work of dozens of them.
MAX_RESPONSES = 2_000
# Beside an engine's gigabytes it is nothing, and no number of long conversations makes it more.
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class StoredResponse:
    """One response, and the whole conversation that it was made from, without instructions."""

    id: str
    owner: bytes  # digest of the key that it was made with
    rendered: bytes  # as it was answered
    input: tuple[Item, ...]
    output: tuple[Item, ...]

    @property
    def conversation(self) -> tuple[Item, ...]:
        """What a response that goes on from this one begins with."""
        return self.input + self.output

    @property
    def size_bytes(self) -> int:
        """What it takes in memory: as answered, and as objects, which are several times larger.

        It is at least what dropping it frees: items are shared by the responses of a conversation.
        """
        return sys.getsizeof(self.rendered) + _measure((*self.input, *self.output))


def _measure(whole: object) -> int:
    """Bytes of an object and of all that it is made of, each part counted once."""
    size = 0
    seen: set[int] = set()
    rest = [whole]
    while rest:
        value = rest.pop()
        if value is None or isinstance(value, type | bool) or id(value) in seen:
            continue
        seen.add(id(value))
        size += sys.getsizeof(value)
        if isinstance(value, BaseModel):
            rest += (value.__dict__, value.model_extra, value.model_fields_set)
        elif isinstance(value, dict):
            rest += itertools.chain.from_iterable(value.items())
        elif isinstance(value, list | tuple | set | frozenset):
            rest += value
    return size


class ResponseStore:
    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._sizes: dict[str, int] = {}
        self._size_bytes = 0
        # The one that was used last is at the end.
        self._by_id: OrderedDict[str, StoredResponse] = OrderedDict()
        self._homes: dict[str, str] = {}  # the response that an item is the output of, by their ids

    def __len__(self) -> int:
        return len(self._by_id)

    def put(self, response: StoredResponse) -> None:
        """Keep it, and drop as many others as that takes."""
        size = response.size_bytes
        self._by_id[response.id] = response
        self._homes |= dict.fromkeys((item.id for item in response.output), response.id)
        self._sizes[response.id] = size
        self._size_bytes += size
        while len(self) > self._max_responses or self._size_bytes > self._max_bytes:
            self.delete(next(iter(self._by_id)))

    def find(self, id_: str, owner: bytes) -> StoredResponse | None:
        """The response, which now counts as used, if it is there and `owner` made it."""
        response = self._by_id.get(id_)
        if response is None or response.owner != owner:
            return None
        self._by_id.move_to_end(id_)
        return response

    def find_output(self, item_id: str, owner: bytes) -> Item | None:
        """The item of that id in the output of a response, if it is there and `owner` made it.

        The response counts as used.
        """
        response = self.find(self._homes.get(item_id, ""), owner)
        output = () if response is None else response.output
        return next((item for item in output if item.id == item_id), None)

    def delete(self, id_: str) -> None:
        """Drop a response that was found."""
        for item in self._by_id.pop(id_).output:
            self._homes.pop(item.id, None)
        self._size_bytes -= self._sizes.pop(id_)
