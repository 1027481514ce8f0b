"""Whatever bytes arrive on the socket between the processes: a message, or a WireError."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.generation import GenerationRequest, SamplingParams
from deepinfer.runtime import wire

always = settings(derandomize=True, deadline=None, max_examples=200)

REQUEST = GenerationRequest(
    request_id="a-0", prompt_token_ids=(1, 2, 3), sampling=SamplingParams(max_tokens=4)
)
MESSAGES: tuple[wire.ToEngine | wire.FromEngine, ...] = (
    wire.Submit((REQUEST,), "key", 1),
    wire.Cancel(("a-0", "b-1")),
    wire.Ping(),
    wire.Pong(),
    wire.Failed("broken", "mend it"),
    wire.Admitted(("a-0",)),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
tagged = st.builds(
    lambda tag, fields: {"type": tag, **fields},
    st.sampled_from(["submit", "cancel", "ping", "step", "rejected", "ready", "progress"]),
    st.dictionaries(
        st.sampled_from(["requests", "request_ids", "chunks", "tenant", "percent", "code"]), plain
    ),
)


def assert_decodes_or_refuses(body: bytes) -> None:
    for decode in (wire.decode_to_engine, wire.decode_from_engine):
        try:
            message = decode(body)
        except wire.WireError as error:
            assert len(error.message) < 1000
        else:
            assert isinstance(message, msgspec.Struct)


@always
@given(body=st.binary(max_size=200))
def test_bytes(body: bytes) -> None:
    assert_decodes_or_refuses(body)


def test_depth_is_refused() -> None:
    assert_decodes_or_refuses(b"\x91" * 1_000_000)


@always
@given(value=plain | tagged)
def test_values_of_other_types(value: object) -> None:
    assert_decodes_or_refuses(msgspec.msgpack.encode(value))


@always
@given(
    message=st.sampled_from(MESSAGES),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    length=st.integers(0, 10_000),
)
def test_messages_with_a_few_bytes_changed_or_cut(
    message: wire.ToEngine | wire.FromEngine, changes: list[tuple[int, int]], length: int
) -> None:
    body = bytearray(wire.encode(message)[wire.HEADER.size :])
    for place, byte in changes:
        body[place % len(body)] = byte
    assert_decodes_or_refuses(bytes(body[: length % (len(body) + 1) or None]))


@always
@given(data=st.binary(max_size=300), sizes=st.lists(st.integers(0, 40)))
def test_frames_do_not_hang_on_how_bytes_arrive(data: bytes, sizes: list[int]) -> None:
    def frames(pieces: list[bytes]) -> list[bytes] | str:
        reader = wire.FrameReader()
        try:
            return [frame for piece in pieces for frame in reader.feed(piece)]
        except wire.WireError:
            return "too long"

    pieces, start = [], 0
    for size in [*sizes, len(data)]:
        pieces.append(data[start : start + size])
        start += size
    assert frames(pieces) == frames([data])


@always
@given(messages=st.lists(st.sampled_from(MESSAGES), max_size=5))
def test_messages_come_back_as_they_were(
    messages: list[wire.ToEngine | wire.FromEngine],
) -> None:
    data = b"".join(map(wire.encode, messages))
    bodies = list(wire.FrameReader().feed(data))
    assert [msgspec.msgpack.decode(body) for body in bodies] == [
        msgspec.msgpack.decode(msgspec.msgpack.encode(message)) for message in messages
    ]
