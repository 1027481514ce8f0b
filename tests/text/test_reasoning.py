"""What a model thinks is split from what it answers, however the text is cut."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.text.reasoning import (
    Reasoning,
    ReasoningParser,
    ReasoningStyle,
    find_reasoning,
    opens_reasoning,
)
from deepinfer.text.tool_calls import Content
from tests.text.chat_templates import CHATML, LLAMA_3
from tests.text.tool_answers import pieces_of

quick = settings(deadline=None, max_examples=200)


def split(pieces: Iterable[str], *, is_open: bool) -> tuple[str, str]:
    """Reasoning and content."""
    parser, thought, answer = ReasoningParser(is_open=is_open), "", ""
    for event in [event for piece in pieces for event in parser.feed(piece)] + parser.close():
        match event:
            case Reasoning(text):
                assert not answer, "reasoning comes first"
                thought += text
            case Content(text):
                answer += text
    return thought, answer


# Whether the prompt opened the block, what the model wrote, and how it is split.
ANSWERS = {
    "a block": (False, "<think>\nHm.\n</think>\n\nParis.", ("\nHm.\n", "\n\nParis.")),
    "opened by the prompt": (True, "\nHm.\n</think>\n\nParis.", ("\nHm.\n", "\n\nParis.")),
    "opened twice": (True, "<think>\nHm.</think>Paris.", ("\nHm.", "Paris.")),
    "white space first": (False, "\n <think>Hm.</think>Paris.", ("Hm.", "Paris.")),
    "no block": (False, "Paris.", ("", "Paris.")),
    "an empty block": (False, "<think>\n\n</think>\n\nParis.", ("\n\n", "\n\nParis.")),
    "never closed": (True, "Hm. Hm.", ("Hm. Hm.", "")),
    "cut off in a closing marker": (True, "Hm.</thi", ("Hm.</thi", "")),
    "cut off in an opening marker": (False, "<thin", ("", "<thin")),
    "nothing but a marker": (False, "<think>", ("", "")),
    "nothing": (True, "", ("", "")),
    "a marker further on": (False, "Use <think>x</think>.", ("", "Use <think>x</think>.")),
    "a second block": (True, "a</think>b<think>c</think>", ("a", "b<think>c</think>")),
    "a closing marker that nothing opened": (False, "a</think>b", ("", "a</think>b")),
    "another marker": (False, "<thinking>a</thinking>", ("", "<thinking>a</thinking>")),
    "markers in one another": (True, "a</th</think>b", ("a</th", "b")),
}


@pytest.mark.parametrize(("is_open", "text", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_thoughts_are_split_from_the_answer(
    is_open: bool, text: str, expected: tuple[str, str]
) -> None:
    assert split([text], is_open=is_open) == expected


@pytest.mark.parametrize(("is_open", "text", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_every_cut_splits_alike(is_open: bool, text: str, expected: tuple[str, str]) -> None:
    assert split(text, is_open=is_open) == expected
    for cut in range(len(text)):
        assert split([text[:cut], text[cut:]], is_open=is_open) == expected


some_texts = st.lists(
    st.sampled_from(["<think>", "</think>", "<th", "</thi", "<", "nk>", " ", "\n", "Hm"])
).map("".join)


@given(text=some_texts, sizes=st.lists(st.integers(0, 5)), is_open=st.booleans())
@quick
def test_split_does_not_hang_on_the_pieces(text: str, sizes: list[int], is_open: bool) -> None:
    assert split(pieces_of(text, sizes), is_open=is_open) == split([text], is_open=is_open)


@given(text=some_texts, is_open=st.booleans())
@quick
def test_nothing_is_lost_but_the_markers(text: str, is_open: bool) -> None:
    thought, answer = split([text], is_open=is_open)
    assert "</think>" not in thought
    opening, closing = r"(\s*<think>)?", "(</think>)?"
    pattern = opening + re.escape(thought) + closing + re.escape(answer)
    assert re.fullmatch(pattern, text)


def test_only_what_may_become_a_marker_is_held_back() -> None:
    parser = ReasoningParser(is_open=True)
    assert parser.feed("Hm") == [Reasoning("Hm")]
    assert parser.feed(" a</th") == [Reasoning(" a")]
    assert parser.feed("e</think>b") == [Reasoning("</the"), Content("b")]
    assert parser.feed(" </think") == [Content(" </think")]


R1 = """
{%- for m in messages %}{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}
{%- endif %}{% endfor %}
{%- if add_generation_prompt and not ns.is_tool %}{{ '<|Assistant|><think>\\n' }}{% endif %}
"""
QWEN3 = """
{%- set text = message.content.split('</think>')[-1].lstrip('\\n') %}
{{- '<think>\\n' + thoughts + '\\n</think>\\n\\n' + text }}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
QWEN35 = QWEN3.replace("    {%- endif %}", "    {%- else %}\n{{- '<think>\\n' }}\n    {%- endif %}")

TEMPLATES = {
    "DeepSeek-R1": (R1, ReasoningStyle(is_opened_by_prompt=True)),
    "Qwen3": (QWEN3, ReasoningStyle(is_opened_by_prompt=False)),
    "Qwen3.5": (QWEN35, ReasoningStyle(is_opened_by_prompt=True)),
    "ChatML with a switch": (CHATML, ReasoningStyle(is_opened_by_prompt=False)),
    "Llama 3": (LLAMA_3, None),
}


@pytest.mark.parametrize(("template", "expected"), TEMPLATES.values(), ids=TEMPLATES)
def test_template_says_whether_the_checkpoint_thinks(
    template: str, expected: ReasoningStyle | None
) -> None:
    assert find_reasoning(template) == expected


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<|Assistant|><think>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>assistant\n", False),
    ],
)
def test_rendered_prompt_says_whether_the_answer_begins_inside(prompt: str, is_open: bool) -> None:
    assert opens_reasoning(prompt) is is_open
