"""Streamed text is exact: the bytes of the tokens, whole characters only, however they arrive."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from deepinfer.text.detokenizer import ByteDetokenizer, Pieces, WindowDetokenizer
from deepinfer.text.tokenizer import Tokenizer
from tests.text import samples

FAMILIES = {
    "byte_level": samples.byte_level,
    "byte_fallback": samples.byte_fallback,
    "byte_fallback_unstripped": samples.byte_fallback_unstripped,
    "metaspace": samples.metaspace,
}
WINDOWED = {
    "wordpiece": samples.wordpiece,
    "word_suffix": samples.word_suffix,
    "ctc": samples.ctc,
    "without_decoder": samples.words_without_decoder,
}
families = pytest.mark.parametrize("family", FAMILIES)
windowed = pytest.mark.parametrize("family", WINDOWED)
quick = settings(deadline=None, max_examples=40)

some_sizes = st.lists(st.integers(1, 4), max_size=30)
unicode_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("a é日🎉\n "))
# Ids of texts, so that bytes are often valid, and ids at random, some beyond the vocabulary.
any_parts = st.lists(st.integers(0, 420) | unicode_text | st.sampled_from(samples.SPECIALS))
few_ids = st.lists(st.integers(0, 20), max_size=30)


def tokenizer_of(family: str) -> Tokenizer:
    backend = (FAMILIES | WINDOWED)[family]()
    return Tokenizer(backend, {})


def ids_of(tokenizer: Tokenizer, parts: list[int | str]) -> list[int]:
    ids: list[int] = []
    for part in parts:
        is_id = isinstance(part, int)
        ids += [part] if is_id else tokenizer.encode(part, add_special_tokens=False)
    return ids


def backend_of(family: str) -> Backend:
    return (FAMILIES | WINDOWED)[family]()


def chunked(items: list[int], sizes: list[int]) -> list[list[int]]:
    chunks, start = [], 0
    for size in [*sizes, len(items)]:
        chunks.append(items[start : start + size])
        start += size
    return chunks


def bytes_of(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    assert tokenizer.token_bytes is not None
    shown = [i for i in ids if i not in tokenizer.special_token_ids]
    first = next((i for i in shown if tokenizer.token_bytes[i]), None)
    if first is None:
        return b""
    rest = shown[shown.index(first) + 1 :]
    return tokenizer.token_bytes.first(first) + b"".join(tokenizer.token_bytes[i] for i in rest)


def ends_incomplete(data: bytes) -> bool:
    """Whether bytes could follow that make the end of `data` a character."""
    for length in range(1, min(4, len(data) + 1)):
        for fill in (b"\x80", b"\x90", b"\xa0"):
            for missing in (1, 2, 3):
                end = data[-length:] + fill + b"\x80" * (missing - 1)
                if len(_decoded_or_empty(end)) == 1:
                    return True
    return False


def _decoded_or_empty(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback", "byte_fallback_unstripped"])
@quick
@given(text=unicode_text)
def test_encoded_text_comes_back(family: str, text: str) -> None:
    text = text.replace("▁", "_")  # how SentencePiece writes a space
    tokenizer = tokenizer_of(family)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@quick
@given(text=st.text("a é日"))
def test_encoded_pieces_come_back_without_byte_tokens(text: str) -> None:
    text = text.lstrip(" ")  # Metaspace drops every space of the first token
    tokenizer = tokenizer_of("metaspace")
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@families
@quick
@given(parts=any_parts, sizes=some_sizes)
def test_stream_is_the_whole_however_it_is_cut(
    family: str, parts: list[int | str], sizes: list[int]
) -> None:
    tokenizer = tokenizer_of(family)
    ids = ids_of(tokenizer, parts)
    detokenizer = tokenizer.detokenizer()
    text = "".join(detokenizer.push(chunk) for chunk in chunked(ids, sizes))
    assert text + detokenizer.finish() == tokenizer.decode(ids)


@families
@quick
@given(parts=any_parts)
def test_text_is_the_bytes_of_the_tokens_less_an_incomplete_end(
    family: str, parts: list[int | str]
) -> None:
    tokenizer = tokenizer_of(family)
    ids = ids_of(tokenizer, parts)
    data = bytes_of(tokenizer, ids)
    whole = data.decode(errors="replace")
    expected = whole[:-1] if ends_incomplete(data) else whole
    assert tokenizer.decode(ids) == expected


@families
@quick
@given(parts=any_parts)
def test_text_equals_the_library_wherever_the_bytes_are_utf8(
    family: str, parts: list[int | str]
) -> None:
    tokenizer = tokenizer_of(family)
    ids = ids_of(tokenizer, parts)
    if "\ufffd" not in bytes_of(tokenizer, ids).decode(errors="replace"):
        assert tokenizer.decode(ids) == backend_of(family).decode(ids)


@quick
@given(parts=any_parts)
def test_byte_level_text_equals_the_library_on_broken_bytes_too(parts: list[int | str]) -> None:
    tokenizer = tokenizer_of("byte_level")
    ids = ids_of(tokenizer, parts)
    incomplete = "\ufffd" if ends_incomplete(bytes_of(tokenizer, ids)) else ""
    assert tokenizer.decode(ids) + incomplete == samples.byte_level().decode(ids)


@families
@quick
@given(parts=any_parts)
def test_special_tokens_can_be_shown(family: str, parts: list[int | str]) -> None:
    tokenizer = tokenizer_of(family)
    ids = ids_of(tokenizer, parts)
    assert tokenizer.token_bytes is not None
    detokenizer = ByteDetokenizer(Pieces(tokenizer.token_bytes, hidden=frozenset()))
    text = detokenizer.push(ids) + detokenizer.finish()
    library = backend_of(family).decode(ids, skip_special_tokens=False)
    if "\ufffd" not in library:
        assert text == library


@families
@quick
@given(before=any_parts, after=any_parts)
def test_prompt_and_answer_are_the_text_of_both(
    family: str, before: list[int | str], after: list[int | str]
) -> None:
    tokenizer = tokenizer_of(family)
    prompt, answer = ids_of(tokenizer, before), ids_of(tokenizer, after)
    detokenizer = tokenizer.detokenizer(continues=prompt)
    text = detokenizer.push(answer) + detokenizer.finish()
    assert tokenizer.decode(prompt) + text == tokenizer.decode(prompt + answer)


@quick
@given(data=st.binary(max_size=12))
def test_no_character_waits_longer_than_its_bytes(data: bytes) -> None:
    """Each prefix of the stream shows all but an incomplete character."""
    tokenizer = tokenizer_of("byte_fallback_unstripped")
    detokenizer = tokenizer.detokenizer()
    text = ""
    for length, byte in enumerate(data, start=1):
        text += detokenizer.push([samples.byte_fallback().token_to_id(f"<0x{byte:02X}>")])
        shown = data[:length].decode(errors="replace")
        assert text == (shown[:-1] if ends_incomplete(data[:length]) else shown)


def test_emoji_split_over_four_tokens_is_shown_once_and_whole() -> None:
    tokenizer = tokenizer_of("byte_fallback")
    ids = tokenizer.encode("🚀", add_special_tokens=False)[1:]
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.push([token_id]) for token_id in ids] == ["", "", "", "🚀"]


@pytest.mark.parametrize("data", [b"\xe2\x98", b"\xf0\x9f\x98", b"\xc3"])
def test_character_cut_off_by_the_end_is_dropped(data: bytes) -> None:
    tokenizer = tokenizer_of("byte_fallback")
    ids = [samples.byte_fallback().token_to_id(f"<0x{byte:02X}>") for byte in b"ok" + data]
    assert tokenizer.decode(ids) == "ok"


def test_half_a_surrogate_is_not_an_incomplete_character() -> None:
    tokenizer = tokenizer_of("byte_fallback")
    ids = [samples.byte_fallback().token_to_id(f"<0x{byte:02X}>") for byte in b"ok\xed\xa0"]
    assert tokenizer.decode(ids) == "ok\ufffd\ufffd"


def test_character_goes_on_across_a_special_token() -> None:
    tokenizer = tokenizer_of("byte_level")
    halves = tokenizer.encode("ö", add_special_tokens=False)
    assert len(halves) == 2
    end = samples.byte_level().token_to_id("<|im_end|>")
    assert tokenizer.decode([halves[0], end, halves[1]]) == "ö"


def test_added_tokens_that_are_not_special_are_shown() -> None:
    for family in FAMILIES:
        ids = tokenizer_of(family).encode(samples.TOOL_TAG, add_special_tokens=False)
        assert tokenizer_of(family).decode(ids) == samples.TOOL_TAG


def test_added_token_is_spelled_as_the_library_spells_it() -> None:
    """ByteLevel reads an added `é` as the byte E9, and so do we: both sides must agree."""
    backend = samples.copy_of(samples.byte_level())
    backend.add_tokens([AddedToken("é", normalized=False), AddedToken("日本 é", normalized=False)])
    tokenizer = Tokenizer(backend, {})
    for text in ("é!", "日本 é"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == backend.decode(ids)


@pytest.mark.parametrize("family", ["byte_fallback", "metaspace"])
def test_leading_space_is_stripped_only_where_a_text_begins(family: str) -> None:
    tokenizer = tokenizer_of(family)
    bos = backend_of(family).token_to_id("<s>")
    prompt = [bos, *tokenizer.encode("dad", add_special_tokens=False)]
    answer = tokenizer.encode("a a", add_special_tokens=False)
    assert tokenizer.detokenizer().push(answer) == "a a"
    assert tokenizer.detokenizer(continues=[bos]).push(answer) == "a a"
    assert tokenizer.detokenizer(continues=prompt).push(answer) == " a a"


def test_character_begun_by_the_prompt_is_shown_by_the_answer() -> None:
    tokenizer = tokenizer_of("byte_fallback")
    ids = tokenizer.encode("🚀", add_special_tokens=False)
    assert tokenizer.detokenizer(continues=ids[:-1]).push(ids[-1:]) == "🚀"


def test_unknown_ids_do_not_fill_the_memory() -> None:
    tokenizer = tokenizer_of("byte_level")
    assert tokenizer.token_bytes is not None
    pieces = Pieces(tokenizer.token_bytes, tokenizer.special_token_ids)
    assert ByteDetokenizer(pieces).push(range(5_000, 9_000)) == ""
    assert not pieces


@families
def test_decoders_that_map_tokens_one_by_one_are_recognised(family: str) -> None:
    assert isinstance(tokenizer_of(family).detokenizer(), ByteDetokenizer)


@windowed
@quick
@given(ids=few_ids, sizes=some_sizes)
def test_windowed_stream_equals_the_library_on_the_whole(
    family: str, ids: list[int], sizes: list[int]
) -> None:
    detokenizer = tokenizer_of(family).detokenizer()
    assert isinstance(detokenizer, WindowDetokenizer)
    text = "".join(detokenizer.push(chunk) for chunk in chunked(ids, sizes))
    whole = backend_of(family).decode(ids)
    assert text + detokenizer.finish() == whole.rstrip("\ufffd")


@windowed
@quick
@given(prompt=few_ids, answer=few_ids)
def test_windowed_answer_joins_its_prompt(
    family: str, prompt: list[int], answer: list[int]
) -> None:
    tokenizer = tokenizer_of(family)
    broken = backend_of(family).token_to_id("�")
    prompt = [token_id for token_id in prompt if token_id != broken]
    answer = [token_id for token_id in answer if token_id != broken]
    detokenizer = tokenizer.detokenizer(continues=prompt)
    text = detokenizer.push(answer) + detokenizer.finish()
    assert tokenizer.decode(prompt) + text == backend_of(family).decode(prompt + answer)


def test_windowed_text_is_held_back_for_three_tokens_at_most() -> None:
    detokenizer = tokenizer_of("wordpiece").detokenizer()
    broken = samples.wordpiece().token_to_id("�")
    shown = [detokenizer.push([broken]) for _ in range(4)]
    assert shown == ["", "", "", "� � � �"]
