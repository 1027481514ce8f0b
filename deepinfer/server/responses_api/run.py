"""One response being generated: prepared as a chat, written as items, sent on or collected.

What becomes of a finished response is its caller's business, who is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from deepinfer.errors import RequestError, UnsupportedParameter
from deepinfer.server.chat_reader import ChatReader, make_readers
from deepinfer.server.engines import ServedEngine
from deepinfer.server.generate import Delta, Generation
from deepinfer.server.param_names import rename_params, renaming_params
from deepinfer.server.prepare import prepare_chat
from deepinfer.server.record import RequestRecord
from deepinfer.server.responses_api.answer import ResponseObject
from deepinfer.server.responses_api.body import PARAM_NAMES, ResponsesBody
from deepinfer.server.responses_api.draft import Draft
from deepinfer.server.responses_api.events import Event, EventNumbering
from deepinfer.server.responses_api.items import Item, new_id
from deepinfer.server.sampling_defaults import with_sampling_defaults
from deepinfer.server.sse import DONE


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
        return self._numbering.render(self.draft.fail(error)) + DONE

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
    body = with_sampling_defaults(body, engine.sampling_defaults)
    chat = body.as_chat(items)
    id_ = new_id("resp")
    with renaming_params(PARAM_NAMES):
        plan = await prepare_chat(engine, chat, id_)
    readers = make_readers(engine, chat, plan)
    reader = None if readers is None else readers[0]
    _check_log_probs(body, reader)
    response = ResponseObject.of(body, id_, engine.model_id)
    return ResponseRun(Generation(engine, plan, record), Draft(response, reader), keep)


def _check_log_probs(body: ResponsesBody, reader: ChatReader | None) -> None:
    if body.includes_log_probs and reader is not None:
        raise UnsupportedParameter(
            "Log probabilities stand with the text of a message, and this answer may hold thoughts "
            "or calls of tools; leave them out, or ask for them at /v1/chat/completions",
            param="include",
        )
