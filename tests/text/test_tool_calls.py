"""Tool calls in the text of an answer: found however it is cut, and nothing of it is lost."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.text.tool_calls import (
    ArgumentsDelta,
    CallBroken,
    CallCut,
    CallEnded,
    CallStarted,
    Content,
    ToolFormat,
)
from deepinfer.text.tool_choice import open_parser
from tests.text.tool_answers import Answer, collect, joined, pieces_of, read

quick = settings(deadline=None, max_examples=150)

HERMES, LLAMA3, MISTRAL = ToolFormat.HERMES, ToolFormat.LLAMA3, ToolFormat.MISTRAL
QWEN_CODER, GLM = ToolFormat.QWEN_CODER, ToolFormat.GLM
EVERY_FORMAT = pytest.mark.parametrize("tool_format", [HERMES, LLAMA3, MISTRAL, QWEN_CODER, GLM])

PARIS = ("weather", '{"city": "Paris"}')
ROME = ("weather", '{"city":"Rome"}')


def answer_of(tool_format: ToolFormat, text: str) -> Answer:
    return collect(read(open_parser(tool_format), [text]))


# What models write, and what is to be made of it.
ANSWERS = {
    "hermes: one call": (
        HERMES,
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        Answer("", [PARIS]),
    ),
    "hermes: words, then two calls": (
        HERMES,
        'I look it up.\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n'
        '</tool_call>\n<tool_call>\n{"name": "weather", "arguments": {"city":"Rome"}}\n'
        "</tool_call>",
        Answer("I look it up.", [PARIS, ROME]),
    ),
    "hermes: arguments before the name": (
        HERMES,
        '<tool_call>\n{ "arguments": {"city": "Paris"}, "name": "weather"}\n</tool_call> ',
        Answer("", [PARIS]),
    ),
    "hermes: arguments as a string": (
        HERMES,
        r'<tool_call>{"name": "weather", "arguments": "{\"city\": \"Paris\"}"}</tool_call>',
        Answer("", [PARIS]),
    ),
    "hermes: a string with escapes of its own": (
        HERMES,
        r'<tool_call>{"name": "f", "arguments": "{\"a\": \"\\n\\\"\ud83d\ude00\u00e9\"}"}'
        "</tool_call>",
        Answer("", [("f", '{"a": "\\n\\"😀é"}')]),
    ),
    "hermes: no arguments": (
        HERMES,
        '<tool_call>\n{"name": "now"}\n</tool_call><tool_call>{"name": "now", "arguments": null}'
        '</tool_call><tool_call>{"name": "now", "arguments": ""}</tool_call>',
        Answer("", [("now", "{}")] * 3),
    ),
    "hermes: markers left out at the end": (
        HERMES,
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}',
        Answer("", [PARIS]),
    ),
    "hermes: half a closing marker at the end": (
        HERMES,
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_',
        Answer("", [PARIS]),
    ),
    "hermes: markers inside a string": (
        HERMES,
        '<tool_call>\n{"name": "say", "arguments": {"a": "</tool_call><tool_call>}"}}\n'
        "</tool_call>",
        Answer("", [("say", '{"a": "</tool_call><tool_call>}"}')]),
    ),
    "hermes: an unknown key": (
        HERMES,
        '<tool_call>{"id": 7, "x": [1, {"name": 2}], "name": "f", "arguments": {}}</tool_call>',
        Answer("", [("f", "{}")]),
    ),
    "hermes: words after a call": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>\nDone <tool_call',
        Answer("Done <tool_call", [("f", "{}")]),
    ),
    "hermes: not JSON": (
        HERMES,
        "Hm <tool_call>\n{'name': 'f', 'arguments': {}}\n</tool_call>\n",
        Answer("Hm <tool_call>\n{'name': 'f', 'arguments': {}}\n</tool_call>\n", []),
    ),
    "hermes: a line break inside a string": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": {"a": "1\n2"}}</tool_call>',
        Answer('<tool_call>{"name": "f", "arguments": {"a": "1\n2"}}</tool_call>', []),
    ),
    "hermes: a broken call before a good one": (
        HERMES,
        '<tool_call>\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
        Answer("<tool_call>", [("f", "{}")]),
    ),
    "hermes: arguments that are no object": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        Answer('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', []),
    ),
    "hermes: a string that holds no object": (
        HERMES,
        '<tool_call>{"name": "f", "arguments": "[1]"}</tool_call>',
        Answer('<tool_call>{"name": "f", "arguments": "[1]"}</tool_call>', []),
    ),
    "hermes: a lone surrogate in wrapped arguments": (
        HERMES,
        r'<tool_call>{"name": "f", "arguments": "{\"a\": \"\ud83d\u0041\"}"}</tool_call>',
        Answer(
            r'<tool_call>{"name": "f", "arguments": "{\"a\": \"\ud83d\u0041\"}"}</tool_call>', []
        ),
    ),
    "hermes: nothing called": (HERMES, "1 < 2 and <tools> \n", Answer("1 < 2 and <tools> \n", [])),
    "llama: one call": (
        LLAMA3,
        '{"name": "weather", "parameters": {"city": "Paris"}}',
        Answer("", [PARIS]),
    ),
    "llama: behind its token, several": (
        LLAMA3,
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}; '
        '{"name": "weather", "parameters": {"city":"Rome"}}',
        Answer("", [PARIS, ROME]),
    ),
    "llama: with a type": (
        LLAMA3,
        ' {"type": "function", "name": "weather", "parameters": {"city": "Paris"}}\n',
        Answer("", [PARIS]),
    ),
    "llama: an answer in JSON": (
        LLAMA3,
        '{"name": "Ada", "born": 1815}',
        Answer('{"name": "Ada", "born": 1815}', []),
    ),
    "llama: a name alone": (LLAMA3, '{"name": "Ada"}', Answer('{"name": "Ada"}', [])),
    "llama: words first": (
        LLAMA3,
        'Sure: {"name": "f", "parameters": {}}',
        Answer('Sure: {"name": "f", "parameters": {}}', []),
    ),
    "llama: words after": (
        LLAMA3,
        '{"name": "f", "parameters": {}}\nThis calls f; and {}.',
        Answer("This calls f; and {}.", [("f", "{}")]),
    ),
    "llama: code behind its token": (
        LLAMA3,
        '<|python_tag|>brave_search.call(query="x")',
        Answer('<|python_tag|>brave_search.call(query="x")', []),
    ),
    "mistral: an array": (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}, "id": "9Ae3bDc2F"}, '
        '{"name": "weather", "arguments": {"city":"Rome"}}]',
        Answer("", [PARIS, ROME]),
    ),
    "mistral: words before": (
        MISTRAL,
        'Let me see.[TOOL_CALLS][{"arguments": {"city": "Paris"}, "name": "weather"}]',
        Answer("Let me see.", [PARIS]),
    ),
    "mistral: names and arguments": (
        MISTRAL,
        '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]weather[CALL_ID]9Ae3bDc2F[ARGS]'
        '{"city":"Rome"}',
        Answer("", [PARIS, ROME]),
    ),
    "mistral: a name without its marker": (
        MISTRAL,
        '[TOOL_CALLS]weather{"city": "Paris"}',
        Answer("", [PARIS]),
    ),
    "mistral: one object": (
        MISTRAL,
        '[TOOL_CALLS]{"name": "weather", "arguments": {"city": "Paris"}}',
        Answer("", [PARIS]),
    ),
    "mistral: an empty array": (MISTRAL, "[TOOL_CALLS] []", Answer("[TOOL_CALLS] []", [])),
    "mistral: the marker in prose": (
        MISTRAL,
        "It writes [TOOL_CALLS] and then [ARGS].",
        Answer("It writes [TOOL_CALLS] and then [ARGS].", []),
    ),
    "mistral: a broken second call": (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": }]',
        Answer(', {"name": }]', [("f", "{}")]),
    ),
    "mistral: arguments that break": (
        MISTRAL,
        "[TOOL_CALLS]f[ARGS]{a: 1}",
        Answer("[TOOL_CALLS]f[ARGS]{a: 1}", []),
    ),
}


@pytest.mark.parametrize(("tool_format", "text", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_what_models_write_is_read(tool_format: ToolFormat, text: str, expected: Answer) -> None:
    assert answer_of(tool_format, text) == expected


@pytest.mark.parametrize(("tool_format", "text", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_every_cut_gives_the_same_events(
    tool_format: ToolFormat, text: str, expected: Answer
) -> None:
    whole = joined(read(open_parser(tool_format), [text]))
    assert joined(read(open_parser(tool_format), text)) == whole
    for cut in range(len(text)):
        assert joined(read(open_parser(tool_format), [text[:cut], text[cut:]])) == whole


def test_events_of_two_calls_have_dense_indices() -> None:
    text = '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}'
    assert read(open_parser(MISTRAL), [text]) == [
        CallStarted(0, "f"),
        ArgumentsDelta(0, '{"a": 1}'),
        CallEnded(0),
        CallStarted(1, "g"),
        ArgumentsDelta(1, "{}"),
        CallEnded(1),
    ]


def test_call_that_breaks_after_its_start_is_said_to_and_given_back() -> None:
    parser = open_parser(HERMES)
    assert parser.feed('<tool_call>{"name": "f", "arguments": {"a": "b') == [
        CallStarted(0, "f"),
        ArgumentsDelta(0, '{"a": "b'),
    ]
    assert parser.close() == [
        CallBroken(0),
        Content('<tool_call>{"name": "f", "arguments": {"a": "b'),
    ]


@pytest.mark.parametrize(
    ("tool_format", "held", "refuted"),
    [
        (HERMES, " <tool_cal", "x"),
        (HERMES, "<tool_call>\n", "x"),
        (HERMES, "\n\n", "x"),
        (LLAMA3, " <|python_", "x"),
        (LLAMA3, '{"name": "Ada", "born', '"'),
        (MISTRAL, "[TOOL_CALLS] [", "]"),
        (MISTRAL, "[TOOL_CALLS]name", " x"),
        (MISTRAL, "[TOOL_CALLS]name[AR", "["),
        (QWEN_CODER, "<tool_call>\n<func", "<"),
        (QWEN_CODER, "<tool_call><function=f>\n<param", "x"),
        (QWEN_CODER, "<tool_call><function=f>\n<parameter=a b", "\n"),
        (GLM, " <tool_call>", "("),
        (GLM, "<tool_call>f\n", "x"),
        (GLM, "<tool_call>f\n<arg_key>a</arg_key>\n<arg_", "k"),
    ],
)
def test_text_is_given_back_with_the_character_that_refutes_it(
    tool_format: ToolFormat, held: str, refuted: str
) -> None:
    parser = open_parser(tool_format)
    assert parser.feed(held) == []
    assert collect(parser.feed(refuted) + parser.close()).content == held + refuted


@EVERY_FORMAT
def test_prose_is_passed_on_at_once(tool_format: ToolFormat) -> None:
    parser = open_parser(tool_format)
    for word in ("Paris", " is", " the", " capital."):
        assert parser.feed(word) == [Content(word)]
    assert parser.close() == []


# Properties

FRAGMENTS = {
    HERMES: ["<tool_call>", "</tool_call>", "<tool_", '{"name": "f", "arguments": {"a": 1}}'],
    LLAMA3: ["<|python_tag|>", "; ", ";", '{"name": "f", "parameters": {"a": [1]}}'],
    MISTRAL: ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[", "]", ", ", "f", '{"a": 1}'],
    QWEN_CODER: [
        *("<tool_call>", "</tool_call>", "<function=", "<function=f>", "</function>", ">"),
        *("<parameter=a>", "</parameter>", "<parameter=", "</param"),
    ],
    GLM: [
        *("<tool_call>", "</tool_call>", "f", "<arg_key>", "</arg_key>", "<arg_value>"),
        *("</arg_value>", "<arg_key>a</arg_key>", "</arg_", "<"),
    ],
}
COMMON = ['{"name": "f"', ', "arguments": ', "{", "}", '"', "\\", "a b", "\n", "  ", "é", "1", ":"]


def some_answers(tool_format: ToolFormat) -> st.SearchStrategy[str]:
    """Calls, near calls and nonsense, made of what the format is made of."""
    return st.lists(st.sampled_from(FRAGMENTS[tool_format] + COMMON), max_size=14).map("".join)


some_sizes = st.lists(st.integers(0, 6), max_size=40)
some_values: st.SearchStrategy[object] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["</tool_call>", "; {", "[TOOL_CALLS]", '"}]', "\\", "{{", "\U0001f600"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
some_arguments = st.builds(
    json.dumps,
    st.dictionaries(st.text(), some_values, max_size=4),
    ensure_ascii=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
some_names = st.text("abcXYZ_-09", min_size=1, max_size=12)

# How each format writes a call: before the arguments, and after them.
FRAMES = {
    "hermes": (HERMES, '<tool_call>\n{{"name": "{}", "arguments": ', "}\n</tool_call>"),
    "llama": (LLAMA3, '{{"name": "{}", "parameters": ', "}"),
    "mistral array": (MISTRAL, '[TOOL_CALLS] [{{"name": "{}", "arguments": ', "}]"),
    "mistral args": (MISTRAL, "[TOOL_CALLS]{}[ARGS]", ""),
}
EVERY_FRAME = pytest.mark.parametrize(
    ("tool_format", "before", "after"), FRAMES.values(), ids=FRAMES
)


@EVERY_FORMAT
@given(data=st.data(), sizes=some_sizes)
@quick
def test_events_do_not_hang_on_how_the_text_is_cut(
    tool_format: ToolFormat, data: st.DataObject, sizes: list[int]
) -> None:
    text = data.draw(some_answers(tool_format))
    whole = joined(read(open_parser(tool_format), [text]))
    assert joined(read(open_parser(tool_format), pieces_of(text, sizes))) == whole


@EVERY_FORMAT
@given(data=st.data())
@quick
def test_answer_without_a_whole_call_is_content_to_the_letter(
    tool_format: ToolFormat, data: st.DataObject
) -> None:
    text = data.draw(some_answers(tool_format))
    answer = answer_of(tool_format, text)
    assert answer.calls or answer.content == text


@EVERY_FORMAT
@given(data=st.data())
@quick
def test_content_stands_in_the_text_in_order_and_calls_are_json(
    tool_format: ToolFormat, data: st.DataObject
) -> None:
    text = data.draw(some_answers(tool_format))
    answer = answer_of(tool_format, text)
    rest = iter(text)
    assert all(char in rest for char in answer.content)
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in answer.calls)


@EVERY_FRAME
@given(name=some_names, arguments=some_arguments, sizes=some_sizes)
@quick
def test_arguments_are_all_there_after_every_piece(
    tool_format: ToolFormat, before: str, after: str, name: str, arguments: str, sizes: list[int]
) -> None:
    opening = before.format(name)
    parser, num_fed, given_out = open_parser(tool_format), 0, ""
    for piece in pieces_of(opening + arguments + after, sizes):
        num_fed += len(piece)
        for event in parser.feed(piece):
            given_out += event.json_text if isinstance(event, ArgumentsDelta) else ""
        assert given_out == arguments[: max(0, num_fed - len(opening))]
    assert parser.close() == []


@EVERY_FRAME
@given(name=some_names, arguments=some_arguments, data=st.data())
@quick
def test_call_that_breaks_off_anywhere_is_content(
    tool_format: ToolFormat, before: str, after: str, name: str, arguments: str, data: st.DataObject
) -> None:
    call = before.format(name) + arguments + after.partition("}")[1]
    text = call[: data.draw(st.integers(0, len(call) - 1))]
    assert answer_of(tool_format, text) == Answer(text, [])


WRITTEN_CALLS = {
    "hermes": (
        HERMES,
        '<tool_call>\n{"name": "f", "arguments": {"a": "b", "n": 12}}\n</tool_call>',
    ),
    "llama tag": (LLAMA3, '<|python_tag|>{"name": "f", "parameters": {"a": "b", "n": 12}}'),
    "mistral array": (MISTRAL, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": "b", "n": 12}}]'),
    "mistral args": (MISTRAL, '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"a": "b", "n": 12}'),
    "qwen3-coder": (
        QWEN_CODER,
        "<tool_call>\n<function=f>\n<parameter=a>\nb\n</parameter>\n<parameter=n>\n12\n"
        "</parameter>\n</function>\n</tool_call>",
    ),
    "glm": (
        GLM,
        "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>b</arg_value>\n<arg_key>n</arg_key>\n"
        "<arg_value>12</arg_value>\n</tool_call>",
    ),
}
MARKER_ENDS = {HERMES: ">", LLAMA3: ">", MISTRAL: "]", QWEN_CODER: ">", GLM: ">"}


@pytest.mark.parametrize(("tool_format", "text"), WRITTEN_CALLS.values(), ids=WRITTEN_CALLS)
def test_call_that_is_cut_anywhere_is_a_call_and_never_content(
    tool_format: ToolFormat, text: str
) -> None:
    marker_len = text.index(MARKER_ENDS[tool_format]) + 1
    (whole,) = answer_of(tool_format, text).calls
    seen = []
    for length in range(marker_len, len(text) + 1):
        events = joined(read(open_parser(tool_format), [text[:length]], is_cut=True))
        assert events == joined(read(open_parser(tool_format), text[:length], is_cut=True))
        answer = collect(events)
        assert answer.content == "" and not any(isinstance(e, CallBroken) for e in events)
        for name, arguments in answer.calls:
            assert name == whole[0] and whole[1].startswith(arguments)
            seen.append(arguments)
        assert bool(answer.calls) == bool(seen), "once the name is known, there is a call"
    # Formats without JSON give a number out when it is whole.
    assert {"", whole[1]} <= set(seen) and len(set(seen)) > 4


@pytest.mark.parametrize(("tool_format", "text"), WRITTEN_CALLS.values(), ids=WRITTEN_CALLS)
def test_second_call_that_is_cut_leaves_the_first_whole(tool_format: ToolFormat, text: str) -> None:
    separator = "; " if tool_format is LLAMA3 else ""
    second = text.removeprefix("<|python_tag|>")
    for length in range(len(second)):
        both = text + separator + second[:length]
        events = read(open_parser(tool_format), [both], is_cut=True)
        assert CallEnded(0) in events
        assert all(event == CallCut(1) for event in events if isinstance(event, CallCut))


def test_what_only_looks_like_the_beginning_of_a_call_is_content_when_it_is_cut() -> None:
    for tool_format, text in [
        (HERMES, "1 <"),
        (HERMES, "so <tool_c"),
        (LLAMA3, '{"name": "Ada", "born'),
        (MISTRAL, "see [TOOL"),
    ]:
        answer = collect(read(open_parser(tool_format), [text], is_cut=True))
        assert answer == Answer(text, [])


# Where the name stands outside, no model wraps its arguments.
@pytest.mark.parametrize(
    ("tool_format", "before", "after"),
    [frame for name, frame in FRAMES.items() if name != "mistral args"],
)
@given(name=some_names, arguments=some_arguments, sizes=some_sizes)
@quick
def test_wrapped_arguments_are_unwrapped(
    tool_format: ToolFormat, before: str, after: str, name: str, arguments: str, sizes: list[int]
) -> None:
    text = before.format(name) + json.dumps(arguments) + after
    answer = collect(read(open_parser(tool_format), pieces_of(text, sizes)))
    assert answer == Answer("", [(name, arguments)])


@given(
    parts=st.lists(st.tuples(some_names, some_arguments, st.text("abc <>é", max_size=9))),
    sizes=some_sizes,
)
@quick
def test_content_between_calls_is_kept(parts: list[tuple[str, str, str]], sizes: list[int]) -> None:
    _, before, after = FRAMES["hermes"]
    text = "".join(before.format(name) + args + after + words for name, args, words in parts)
    answer = collect(read(open_parser(HERMES), pieces_of(text, sizes)))
    assert answer.calls == [(name, args) for name, args, _ in parts]
    words = [words.lstrip() for _, _, words in parts]
    # What follows the last word is not next to a call.
    assert answer.content == "".join([*(one.strip() for one in words[:-1]), *words[-1:]])


@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        (HERMES, " " * 100_000 + "x"),
        (HERMES, "<tool_call>" * 10_000),
        (HERMES, '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * 100_000),
        (LLAMA3, "\n" * 100_000 + "x"),
        (MISTRAL, "[TOOL_CALLS]f[CALL_ID]" + "x" * 100_000),
        (QWEN_CODER, "<tool_call><function=f><parameter=a>" + "</parameter" * 10_000),
        (QWEN_CODER, "<tool_call><function=f><parameter=" + "a" * 100_000),
        (GLM, "<tool_call>" * 10_000),
        (GLM, "<tool_call>f<arg_key>a</arg_key><arg_value>" + "\n" * 100_000),
    ],
)
def test_time_grows_with_the_text_and_no_faster(tool_format: ToolFormat, text: str) -> None:
    started_s = time.process_time()
    answer = collect(read(open_parser(tool_format), text))
    # A quadratic parser takes minutes; this one a third of a second.
    assert time.process_time() - started_s < 5
    assert answer.content == text
