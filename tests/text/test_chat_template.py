"""Prompts equal those of transformers' apply_chat_template, and a template can do no harm."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from deepinfer.errors import EngineError, InvalidValue, UnsupportedParameter
from deepinfer.text.chat_template import ChatTemplate
from deepinfer.text.template_bounds import TemplateTooSlow
from deepinfer.text.tokenizer import Tokenizer
from tests.text import chat_templates, samples

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = {"type": "function", "function": {"name": "add", "description": "a < b & 'c' é"}}
CHAT = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Is 1 < 2 & 'so on'?\n"},
    {"role": "assistant", "content": "<think>hm</think>\n\nYes 🎉"},
    {"role": "user", "content": "Why?"},
]

messages_of_any_kind = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "content": st.text("ab<>&'\"{%}\n é", max_size=12) | st.none(),
        }
    ),
    min_size=1,
    max_size=6,
)


@cache
def transformers_tokenizer(source: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=samples.byte_level(), chat_template=source, **SPECIAL_TOKENS
    )


def expected_prompt(source: str, messages: Any, **arguments: Any) -> str:
    tokenizer = transformers_tokenizer(source)
    prompt: str = tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
    return prompt


@cache
def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, SPECIAL_TOKENS)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("name", chat_templates.ALL)
def test_prompt_equals_transformers(name: str, add_generation_prompt: bool) -> None:
    """`dated` fails where midnight falls between the two, about once in 10^7 runs."""
    source = chat_templates.ALL[name]
    ours = template(source).render(CHAT, add_generation_prompt=add_generation_prompt)
    assert ours == expected_prompt(source, CHAT, add_generation_prompt=add_generation_prompt)
    assert ours


@pytest.mark.parametrize("name", chat_templates.ALL)
@settings(deadline=None, max_examples=25)
@given(messages=messages_of_any_kind)
def test_any_prompt_equals_transformers_or_is_refused_there_too(
    name: str, messages: list[dict[str, Any]]
) -> None:
    source = chat_templates.ALL[name]
    try:
        expected = expected_prompt(source, messages, add_generation_prompt=True)
    except (TemplateError, TypeError, AttributeError) as error:
        with pytest.raises(InvalidValue) as caught:
            template(source).render(messages)
        assert str(error).rstrip(".") in caught.value.message
    else:
        assert template(source).render(messages) == expected


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param("llama-3", {"tools": [TOOL]}, id="tools"),
        pytest.param("chatml", {"enable_thinking": False}, id="thinking-off"),
        pytest.param("chatml", {"enable_thinking": True}, id="thinking-on"),
        pytest.param("macros", {"documents": []}, id="documents"),
    ],
)
def test_arguments_reach_the_template_as_in_transformers(
    name: str, arguments: dict[str, Any]
) -> None:
    source = chat_templates.ALL[name]
    expected = expected_prompt(source, CHAT, add_generation_prompt=True, **arguments)
    assert template(source).render(CHAT, arguments=arguments) == expected
    assert expected != template(source).render(CHAT) or arguments == {"enable_thinking": True}


def test_template_that_raises_is_a_mistake_of_the_messages() -> None:
    with pytest.raises(InvalidValue) as caught:
        template(chat_templates.MISTRAL).render([CHAT[1], CHAT[1]])
    assert caught.value.message.endswith("roles must alternate user/assistant/user/assistant")
    assert caught.value.param == "messages"


def test_long_message_of_a_template_is_cut() -> None:
    source = "{{ raise_exception(messages[0].content) }}"
    with pytest.raises(InvalidValue) as caught:
        template(source).render([{"role": "user", "content": "x" * 10_000}])
    assert len(caught.value.message) < 600


def test_argument_that_is_not_listed_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedParameter, match="`bos_token` is not supported") as caught:
        template(chat_templates.CHATML).render(CHAT, arguments={"bos_token": "<|im_start|>"})
    assert caught.value.param == "bos_token"


def test_model_without_a_template_takes_no_messages(tmp_path: Path) -> None:
    without = ChatTemplate.load(tmp_path)
    assert not without.is_available
    with pytest.raises(InvalidValue, match="no chat template") as caught:
        without.render(CHAT)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{{ messages.append(1) }}", id="change-the-messages"),
        pytest.param("{{ messages[0].update(role='x') }}", id="change-a-message"),
        pytest.param("{{ ''.__class__.__mro__ }}", id="reach-for-classes"),
        pytest.param("{{ raise_exception.__globals__['json'] }}", id="reach-for-globals"),
        pytest.param("{% include 'other' %}", id="include-a-file"),
        pytest.param("{% for i in range(10**9) %}{% endfor %}", id="count-for-ever"),
        pytest.param("{{ messages | nonesuch }}", id="unknown-filter"),
    ],
)
def test_template_is_kept_in_its_sandbox(source: str) -> None:
    source = "{% if messages %}" + source + "{% endif %}"
    with pytest.raises(InvalidValue):
        template(source).render(CHAT)


def grow(expression: str, start: str = "'x'") -> str:
    """A template that puts sixty times together what it has."""
    loop = "{% for i in range(60) %}{% set ns.s = " + expression + " %}{% endfor %}"
    return "{% set ns = namespace(s=" + start + ") %}" + loop + "{{ ns.s }}"


LONG = "{% set s = 'a' * 10 ** 7 %}"
HOSTILE_TEMPLATES = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) ~ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursion": "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "concatenation": grow("ns.s ~ ns.s"),
    "addition": grow("ns.s + ns.s"),
    "block": grow("x").replace("ns.s = x %}", "ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
    "lists": grow("[ns.s, ns.s]"),
    "tuples": grow("(ns.s, ns.s)"),
    "objects": grow("{'a': ns.s, 'b': ns.s}"),
    "keywords": grow("dict(a=ns.s, b=ns.s)"),
    "namespaces": grow("namespace(a=ns.s, b=ns.s)"),
    "numbers": grow("ns.s * ns.s", "9 ** 99"),
    "repeated text": "{{ 'x' * 10 ** 10 }}",
    "repeated list": "{{ 10 ** 9 * messages }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "width": "{{ 'x'.center(10 ** 10) }}",
    "width of a filter": "{{ 'x' | center(10 ** 10) }}",
    "format": "{{ '%10000000000d' % 1 }}",
    "format with a star": "{{ '%*d' % (10 ** 10, 1) }}",
    "format with braces": "{{ '{:10000000000}'.format(1) }}",
    "format with braces in braces": "{{ '{:{w}}'.format(1, w='9999999999') }}",
    "format of a map": "{{ '{:{w}}'.format_map({'w': 10 ** 10}) }}",
    "format as a filter": "{{ '%10000000000d' | format(1) }}",
    "replacement": LONG + "{{ s.replace('a', s) }}",
    "replacement by a filter": LONG + "{{ s | replace('a', s) }}",
    "joining": LONG + "{{ s.join(s) }}",
    "joining by a filter": LONG + "{{ s | join(s) }}",
    "indent": LONG + "{{ s.replace('a', '\n') | indent(4000) }}",
    "indent of JSON": "{{ messages | tojson(indent=10 ** 9) }}",
    "tabs": LONG + "{{ s.replace('a', '\t').expandtabs(10 ** 6) }}",
    "translation": LONG + "{{ s.translate({97: s}) }}",
    "wrapping": LONG + "{{ s | wordwrap(1, wrapstring=s) }}",
    "bytes": "{{ (1).to_bytes(10 ** 6) }}",
    "digits": "{{ 2.5 | round(10 ** 9, 'ceil') }}",
    "slices": "{{ messages | slice(10 ** 9) | list }}",
    "characters": LONG + "{{ s | sort }}",
}


@pytest.mark.parametrize("source", HOSTILE_TEMPLATES.values(), ids=HOSTILE_TEMPLATES)
def test_template_can_neither_run_for_ever_nor_fill_the_memory(source: str) -> None:
    """Each would take minutes or gigabytes, and the test with it."""
    with pytest.raises(InvalidValue) as caught:
        template(source).render(CHAT)
    assert caught.value.param == "messages"
    assert len(caught.value.message) < 200


def test_template_that_is_slow_for_the_event_loop_may_try_again_elsewhere() -> None:
    slow = template("{% for i in range(99999) %}{% endfor %}done")
    with pytest.raises(TemplateTooSlow):
        slow.render(CHAT, limit_s=0.0001)
    assert slow.render(CHAT) == "done"


def test_template_that_does_not_compile_refuses_the_engine() -> None:
    with pytest.raises(EngineError, match="`default` does not compile: line 2"):
        ChatTemplate({"default": "\n{% for %}"}, {})


def test_tool_template_is_chosen_when_there_are_tools() -> None:
    both = ChatTemplate({"default": "plain", "tool_use": "{{ tools | length }}"}, {})
    assert both.render(CHAT) == "plain"
    assert both.render(CHAT, arguments={"tools": [TOOL]}) == "1"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({"chat_template.jinja": "file"}, {"default": "file"}, id="file"),
        pytest.param(
            {"tokenizer_config.json": {"chat_template": "config"}},
            {"default": "config"},
            id="config",
        ),
        pytest.param(
            {
                "tokenizer_config.json": {"chat_template": "config"},
                "chat_template.jinja": "file",
                "chat_template.json": {"chat_template": "json"},
            },
            {"default": "file"},
            id="file-before-config",
        ),
        pytest.param(
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "default", "template": "plain"},
                        {"name": "tool_use", "template": "tools"},
                    ]
                }
            },
            {"default": "plain", "tool_use": "tools"},
            id="named",
        ),
        pytest.param(
            {"chat_template.jinja": "plain", "additional_chat_templates/tool_use.jinja": "tools"},
            {"default": "plain", "tool_use": "tools"},
            id="named-files",
        ),
        pytest.param(
            {"chat_template.json": {"chat_template": "json"}}, {"default": "json"}, id="json"
        ),
    ],
)
def test_template_is_found_where_checkpoints_keep_it(
    tmp_path: Path, files: dict[str, Any], expected: dict[str, str]
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = ChatTemplate.load(tmp_path)
    tools = [TOOL] if "tool_use" in expected else None
    assert found.render(CHAT) == expected["default"]
    assert found.render(CHAT, arguments={"tools": tools}) == expected.get(
        "tool_use", expected["default"]
    )


def test_broken_list_of_templates_is_refused(tmp_path: Path) -> None:
    config = {"chat_template": [{"name": "default"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(EngineError, match="lacks its name or its template"):
        ChatTemplate.load(tmp_path)


def test_folder_saved_by_transformers_reads_the_same(tmp_path: Path) -> None:
    theirs = transformers_tokenizer(chat_templates.LLAMA_3)
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    prompt = ChatTemplate.load(tmp_path).render(CHAT)
    assert prompt == expected_prompt(chat_templates.LLAMA_3, CHAT, add_generation_prompt=True)
    assert ours.special_tokens == theirs.special_tokens_map
    ids = ours.encode(prompt, add_special_tokens=False)
    assert ids == theirs(prompt, add_special_tokens=False)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


TRIMMED_CHATML = chat_templates.CHATML.replace("message.content }}", "message.content | trim }}")
CONTINUED = ["d", "<", "end", "im_end", "Sure", " a ", "two\n", "", "assistant"]


@pytest.mark.parametrize("prefill", CONTINUED)
@pytest.mark.parametrize("source", [chat_templates.CHATML, chat_templates.LLAMA_3, TRIMMED_CHATML])
def test_prompt_ends_with_the_final_message_wherever_its_text_occurs_besides(
    source: str, prefill: str
) -> None:
    messages = [*CHAT, {"role": "assistant", "content": prefill}]
    ours = template(source).render(
        messages, add_generation_prompt=False, continues_final_message=True
    )
    whole = template(source).render(messages, add_generation_prompt=False)
    head = template(source).render(CHAT, add_generation_prompt=True)
    trims = source is not chat_templates.CHATML
    assert ours == head + (prefill.strip() if trims else prefill)
    assert whole.startswith(ours)


def test_final_message_that_is_shown_in_another_form_is_not_continued() -> None:
    shouting = template("{% for m in messages %}{{ m.content | upper }}\n{% endfor %}")
    silent = template("{% for m in messages[:-1] %}{{ m.content }}\n{% endfor %}")
    for source in (shouting, silent):
        with pytest.raises(InvalidValue, match="final message") as caught:
            source.render(CHAT, add_generation_prompt=False, continues_final_message=True)
        assert caught.value.param == "continue_final_message"


def test_thoughts_that_a_template_leaves_out_do_not_stop_a_continuation() -> None:
    last = [{"role": "assistant", "content": "<think>hm</think>\nYes, and"}]
    source = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}<end>{% endfor %}"
    prompt = template(source).render(last, continues_final_message=True)
    assert prompt == "\nYes, and"
