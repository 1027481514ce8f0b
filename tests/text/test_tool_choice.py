"""A checkpoint's chat template shows how it writes tool calls, unless a user names the format."""

from __future__ import annotations

from typing import get_args

import pytest

from deepinfer.config import ToolFormatName
from deepinfer.errors import ConfigError
from deepinfer.text.tool_calls import CallStarted, ToolFormat
from deepinfer.text.tool_choice import find_evidence, find_tool_format, open_parser
from tests.text.chat_templates import CHATML, LLAMA_3
from tests.text.chat_templates import MISTRAL as MISTRAL_WITHOUT_TOOLS

# The lines of real templates that say how calls look.
QWEN = r"""{{- "\n</tools>\n\nReturn JSON within <tool_call></tool_call> XML tags:\n" }}
{{- "<tool_call>\n{\"name\": <name>, \"arguments\": <args-json-object>}\n</tool_call>" }}"""
QWEN_CODER = r"""{{- '\n<tool_call>\n<function=' + tool_call.name + '>\n' }}
{%- for name, value in tool_call.arguments|items %}<parameter={{ name }}>{{ value }}{% endfor %}"""
GLM = """<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>{% for k, v in tc.arguments.items() %}{{ tc.name }}{% endfor %}"""
LLAMA_31 = """{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}"""
MISTRAL_ARRAY = '{{- "[TOOL_CALLS] [" }}{%- set out = tool_call.function|tojson %}'
MISTRAL_ARGS = "{{- '[TOOL_CALLS]' + tool['function']['name'] + '[ARGS]' + arguments }}"
DEEPSEEK = "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + name"

TEMPLATES = {
    "Qwen": (QWEN, [], ToolFormat.HERMES),
    "Qwen3-Coder": (QWEN_CODER, [], ToolFormat.QWEN_CODER),
    "GLM": (GLM, [], ToolFormat.GLM),
    "Llama 3.1": (LLAMA_31, ["<|python_tag|>", "<|eot_id|>"], ToolFormat.LLAMA3),
    "a template like Llama's without its token": (LLAMA_31, ["<|eot_id|>"], ToolFormat.GENERIC),
    "Mistral": (MISTRAL_ARRAY, ["[TOOL_CALLS]"], ToolFormat.MISTRAL),
    "Ministral": (MISTRAL_ARGS, ["[TOOL_CALLS]", "[ARGS]"], ToolFormat.MISTRAL_ARGS),
    "a template that never shows calls": (
        MISTRAL_WITHOUT_TOOLS,
        ["[TOOL_CALLS]"],
        ToolFormat.GENERIC,
    ),
    "DeepSeek": (DEEPSEEK, [], ToolFormat.GENERIC),
    "Llama 3 without calls": (LLAMA_3, ["<|python_tag|>"], ToolFormat.GENERIC),
    "ChatML": (CHATML, [], ToolFormat.GENERIC),
}


@pytest.mark.parametrize(("template", "tokens", "expected"), TEMPLATES.values(), ids=TEMPLATES)
def test_format_is_what_the_template_shows(
    template: str, tokens: list[str], expected: ToolFormat
) -> None:
    assert find_tool_format(template, tokens) is expected
    evidence = find_evidence(template, tokens)
    assert (evidence is None) == (expected is ToolFormat.GENERIC)
    assert evidence is None or evidence.reason


@pytest.mark.parametrize("name", ToolFormat)
def test_user_may_name_the_format(name: ToolFormat) -> None:
    assert find_tool_format(DEEPSEEK, [], named=name.value) is name


def test_setting_takes_every_format() -> None:
    assert get_args(ToolFormatName) == ("auto", *ToolFormat, "none")


def test_user_may_say_that_there_is_none() -> None:
    assert find_tool_format(QWEN, [], named="none") is None


def test_name_that_is_no_format_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="`pythonic`") as caught:
        find_tool_format(QWEN, [], named="pythonic")
    assert all(name in str(caught.value.hint) for name in (*ToolFormat, "none"))


WITHOUT_JSON = {
    ToolFormat.QWEN_CODER: "<function=f></function>",
    ToolFormat.GLM: "f</tool_call>",
}


@pytest.mark.parametrize("tool_format", ToolFormat)
def test_every_format_has_a_parser_that_reads_its_marker(tool_format: ToolFormat) -> None:
    call = WITHOUT_JSON.get(tool_format, '{"name": "f", "arguments": {}}')
    text = tool_format.markers[0] + call
    assert open_parser(tool_format).feed(text)[0] == CallStarted(0, "f")
