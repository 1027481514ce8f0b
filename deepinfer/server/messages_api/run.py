"""One message being generated: the engine's answer written into blocks, sent on or collected."""

from __future__ import annotations

import logging
from contextlib import aclosing
from dataclasses import dataclass, field

from deepinfer.errors import RequestError
from deepinfer.generation import FinishReason
from deepinfer.server.chat_reader import ChatReader, make_readers
from deepinfer.server.engines import ServedEngine
from deepinfer.server.generate import Delta, Generation
from deepinfer.server.ids import new_message_id
from deepinfer.server.messages_api.answer import (
    AppliedContextManagement,
    ManagedMessage,
    Message,
    MessageUsage,
    StopReason,
)
from deepinfer.server.messages_api.body import MessagesBody
from deepinfer.server.messages_api.clearing import clear_prompt
from deepinfer.server.messages_api.conversation import PARAM_NAMES, as_chat_off_loop
from deepinfer.server.messages_api.events import (
    render_block_event,
    render_end,
    render_error,
    render_start,
)
from deepinfer.server.messages_api.writer import BlockEvent, BlockWriter
from deepinfer.server.param_names import renaming_params
from deepinfer.server.prepare import Choice, prepare_chat
from deepinfer.server.record import RequestRecord
from deepinfer.server.sampling_defaults import with_sampling_defaults

logger = logging.getLogger(__name__)


@dataclass
class MessageRun:
    """Carried out once: as the EventWriter of its stream, or by `collect`."""

    id: str
    request_id: str
    model: str
    asked_max_tokens: int
    choice: Choice
    generation: Generation
    writer: BlockWriter
    context_management: AppliedContextManagement | None = None
    _has_begun: bool = field(default=False, init=False)

    def write(self, deltas: list[Delta]) -> bytes:
        head = b"" if self._has_begun else render_start(self._message(None))
        self._has_begun = True
        events = [event for delta in deltas for event in self._write_delta(delta)]
        return head + b"".join(map(render_block_event, events))

    def end(self) -> bytes:
        return render_end(self._message(self._stop_reason))

    def fail(self, error: RequestError) -> bytes:
        return render_error(error, self.request_id)

    async def collect(self) -> Message:
        async with aclosing(self.generation.deltas()) as stream:
            async for deltas in stream:
                for delta in deltas:
                    self._write_delta(delta)
        return self._message(self._stop_reason)

    def _write_delta(self, delta: Delta) -> list[BlockEvent]:
        is_cut = delta.finish_reason == FinishReason.LENGTH
        is_over = delta.finish_reason is not None
        return self.writer.write(delta.text, is_over=is_over, is_cut=is_cut)

    def _message(self, stop_reason: StopReason | None) -> Message:
        stop = self.choice.output.stop_string if stop_reason == "stop_sequence" else None
        message = Message(
            id=self.id,
            model=self.model,
            content=self.writer.blocks if stop_reason is not None else [],
            stop_reason=stop_reason,
            stop_sequence=stop,
            usage=MessageUsage.of(self.generation.usage),
        )
        if stop_reason is None or self.context_management is None:
            return message
        return ManagedMessage(**dict(message), context_management=self.context_management)

    @property
    def _stop_reason(self) -> StopReason:
        if self.choice.output.finish_reason is FinishReason.LENGTH:
            is_cut = self.choice.request.sampling.max_tokens < self.asked_max_tokens
            return "model_context_window_exceeded" if is_cut else "max_tokens"
        if self.writer.has_calls:
            return "tool_use"
        return "end_turn" if self.choice.output.stop_string is None else "stop_sequence"


async def prepare_message(
    engine: ServedEngine, body: MessagesBody, record: RequestRecord
) -> MessageRun:
    """Raises what `prepare_chat` does, with the names of this route's fields."""
    if body.unserved_tools:
        names = ", ".join(sorted({ascii(tool.type) for tool in body.unserved_tools}))
        logger.info("left out tools that the client does not run itself: %s", names)
    body = with_sampling_defaults(body, engine.sampling_defaults)
    id_ = new_message_id()
    with renaming_params(PARAM_NAMES):
        cleared = await clear_prompt(engine, body)
        # The chat has fields that this route's bodies do not have.
        chat = await as_chat_off_loop(cleared.body)
        chat = with_sampling_defaults(chat, engine.sampling_defaults)
        plan = await prepare_chat(engine, chat, id_, cuts_max_tokens=True)
    [reader] = make_readers(engine, chat, plan) or [ChatReader()]
    return MessageRun(
        id=id_,
        request_id=record.request_id,
        model=engine.model_id,
        asked_max_tokens=body.max_tokens,
        choice=plan.choices[0],
        generation=Generation(engine, plan, record),
        writer=BlockWriter(reader, shows_thinking=body.shows_thinking),
        context_management=None
        if body.context_management is None
        else AppliedContextManagement(applied_edits=list(cleared.applied)),
    )
