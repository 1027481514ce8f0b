"""One response being generated: prepared as a chat, written as items, sent on or collected.

What becomes of a finished response is its caller's business, who is told once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from deepinfer.errors import RequestError, UnsupportedParameter
from deepinfer.server.chat_reader import ChatReader, make_readers
from deepinfer.server.engines import ServedEngine
from deepinfer.server.generate import Delta, Generation
from deepinfer.server.param_names import rename_params, renaming_params
from deepinfer.server.prepare import prepare_chat, tokenize_chat_body
from deepinfer.server.record import RequestRecord
from deepinfer.server.responses_api.answer import (
    CompactedResponse,
    InputTokens,
    ResponseObject,
    ResponseUsage,
)
from deepinfer.server.responses_api.body import (
    PARAM_NAMES,
    CompactBody,
    InputTokensBody,
    ResponsesBody,
)
from deepinfer.server.responses_api.compaction import write_summary
from deepinfer.server.responses_api.draft import Draft
from deepinfer.server.responses_api.events import Event, EventNumbering
from deepinfer.server.responses_api.items import CompactionItem, Item, MessageItem, new_id
from deepinfer.server.sampling_defaults import with_sampling_defaults
from deepinfer.server.sse import DONE

logger = logging.getLogger(__name__)


@dataclass
class ResponseRun:
    """Carried out once: as the EventWriter of its stream, or by `collect`.

    `keep` is given what comes of it.
    """

    generation: Generation
    draft: Draft
    keep: Callable[[ResponseObject], None]
    _numbering: EventNumbering = field(default_factory=EventNumbering, init=False)
    _has_begun: bool = field(default=False, init=False)

    def write(self, deltas: list[Delta]) -> bytes:
        events = self._write(deltas)
        if not self._has_begun:
            # The response is created when the engine has taken the request, and not before.
            self._has_begun = True
            events = self.draft.begin() + events
        return self._numbering.render(events)

    def end(self) -> bytes:
        events = self.draft.end(self.generation.usage)
        self.keep(self.draft.response)
        return self._numbering.render(events) + DONE

    def fail(self, error: RequestError) -> bytes:
        rename_params(error, PARAM_NAMES)
        # Clients expect every stream to begin with the created response.
        begin = [] if self._has_begun else self.draft.begin()
        return self._numbering.render(begin + self.draft.fail(error)) + DONE

    async def collect(self) -> ResponseObject:
        with renaming_params(PARAM_NAMES):
            async with aclosing(self.generation.deltas()) as stream:
                async for deltas in stream:
                    self._write(deltas)
        self.draft.end(self.generation.usage)
        self.keep(self.draft.response)
        return self.draft.response

    def _write(self, deltas: list[Delta]) -> list[Event]:
        return [event for delta in deltas for event in self.draft.write(delta)]


async def prepare_response(
    engine: ServedEngine,
    body: ResponsesBody,
    items: Sequence[Item],
    record: RequestRecord,
    keep: Callable[[ResponseObject], None],
) -> ResponseRun:
    """`items` are the whole conversation. Raises what preparing a chat does, in our words."""
    if body.unserved_tools:
        names = ", ".join(sorted({ascii(tool.type) for tool in body.unserved_tools}))
        logger.info("left out tools that the client does not run itself: %s", names)
    body = with_sampling_defaults(body, engine.sampling_defaults)
    id_ = new_id("resp")
    with renaming_params(PARAM_NAMES):
        chat = body.as_chat(
            await truncate(engine, body, items, max(1, body.max_output_tokens or 1))
        )
        plan = await prepare_chat(engine, chat, id_, default_max_tokens=None)
    readers = make_readers(engine, chat, plan)
    reader = None if readers is None else readers[0]
    _check_log_probs(body, reader)
    response = ResponseObject.of(body, id_, engine.model_id)
    draft = Draft(response, reader, body.offered_tools.by_chat_name)
    return ResponseRun(Generation(engine, plan, record), draft, keep)


async def count_input_tokens(
    engine: ServedEngine, body: InputTokensBody, items: Sequence[Item]
) -> InputTokens:
    with renaming_params(PARAM_NAMES):
        chat = body.as_chat(await truncate(engine, body, items, 1))
        return InputTokens(input_tokens=len(await tokenize_chat_body(engine, chat)))


async def compact(
    engine: ServedEngine, body: CompactBody, items: Sequence[Item], record: RequestRecord
) -> CompactedResponse:
    """The conversation's messages of others than the assistant, and a summary by the model."""
    chat = body.as_chat(items)
    id_ = new_id("resp")
    with renaming_params(PARAM_NAMES):
        plan = await prepare_chat(engine, chat, id_, cuts_max_tokens=True)
        [reader] = make_readers(engine, chat, plan) or [ChatReader()]
        generation = Generation(engine, plan, record)
        [answer] = await generation.collect()
    summary = reader.feed(answer.text, is_over=True).content.strip()
    kept = [item for item in items if isinstance(item, MessageItem) and item.role != "assistant"]
    item = CompactionItem(id=new_id("cmp"), encrypted_content=write_summary(summary))
    return CompactedResponse(
        id=id_,
        created_at=int(time.time()),
        output=[*kept, item],
        usage=ResponseUsage.of(generation.usage),
    )


async def truncate(
    engine: ServedEngine,
    body: ResponsesBody | InputTokensBody,
    items: Sequence[Item],
    answer_tokens: int,
) -> Sequence[Item]:
    """The items of as many of the last turns as fit beside so many tokens of an answer.

    All of them unless the request has them truncated. A turn begins with a message of the user;
    what the system and the developer say stays.
    """
    if body.truncation != "auto":
        return items
    limits = engine.manifest.limits
    room = min(limits.max_input_len, limits.max_seq_len - answer_tokens)

    def keep_from(start: int) -> Sequence[Item]:
        standing = (item for item in items[:start] if _is_standing(item))
        return [*standing, *items[start:]]

    async def fits(start: int) -> bool:
        return len(await tokenize_chat_body(engine, body.as_chat(keep_from(start)))) <= room

    starts = [
        index
        for index, item in enumerate(items)
        if isinstance(item, MessageItem) and item.role == "user"
    ]
    if not starts or await fits(0):
        return items
    # The first of the turns that may begin the prompt; the last one is sent even if it is too long.
    first, last = 0, len(starts) - 1
    while first < last:
        middle = (first + last) // 2
        if await fits(starts[middle]):
            last = middle
        else:
            first = middle + 1
    return keep_from(starts[first])


def _is_standing(item: Item) -> bool:
    return isinstance(item, MessageItem) and item.role in ("system", "developer")


def _check_log_probs(body: ResponsesBody, reader: ChatReader | None) -> None:
    if body.includes_log_probs and reader is not None:
        raise UnsupportedParameter(
            "Log probabilities stand with the text of a message, and this answer may hold thoughts "
            "or calls of tools; leave them out, or ask for them at /v1/chat/completions",
            param="include",
        )
