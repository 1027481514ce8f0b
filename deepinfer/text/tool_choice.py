"""Which format of tool calls a checkpoint writes, by what its own chat template contains.

A template shows the model its format, as instructions or as calls of earlier turns, so the markers
in it are the evidence. A user may name the format instead.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deepinfer.errors import ConfigError
from deepinfer.text.parameter_types import ParameterTypes
from deepinfer.text.tool_calls import ToolCallParser, ToolFormat
from deepinfer.text.tool_formats.glm import GlmParser
from deepinfer.text.tool_formats.hermes import HermesParser
from deepinfer.text.tool_formats.llama3 import Llama3Parser
from deepinfer.text.tool_formats.mistral import MistralParser
from deepinfer.text.tool_formats.qwen_coder import QwenCoderParser
from deepinfer.text.tool_schema import Tool

NO_FORMAT = "none"


@dataclass(frozen=True)
class Evidence:
    """All of `shown` are in the template, none of `foreign`, and it or the tokens have `token`."""

    format: ToolFormat
    reason: str
    shown: tuple[str, ...]
    foreign: tuple[str, ...] = ()
    token: str = ""

    def holds(self, template: str, special_tokens: Collection[str]) -> bool:
        return (
            all(text in template for text in self.shown)
            and not any(text in template for text in self.foreign)
            and (self.token in template or self.token in special_tokens)
        )


# The first that holds counts.
EVIDENCE = (
    Evidence(
        ToolFormat.MISTRAL_ARGS,
        "earlier calls are rendered as `[TOOL_CALLS]name[ARGS]{...}`",
        shown=("[TOOL_CALLS]", "[ARGS]"),
    ),
    Evidence(
        ToolFormat.MISTRAL,
        "earlier calls are rendered as `[TOOL_CALLS]` and an array",
        shown=("[TOOL_CALLS]",),
    ),
    Evidence(
        ToolFormat.HERMES,
        "calls are shown as JSON in `<tool_call>`",
        shown=("<tool_call>", "name", "arguments"),
        # Qwen3-Coder and GLM write XML inside the same marker.
        foreign=("<function=", "<arg_key>"),
    ),
    Evidence(
        ToolFormat.QWEN_CODER,
        "calls are shown as `<function=name>` in `<tool_call>`",
        shown=("<tool_call>", "<function=", "<parameter="),
    ),
    Evidence(
        ToolFormat.GLM,
        "calls are shown as pairs of `<arg_key>` and `<arg_value>` in `<tool_call>`",
        shown=("<tool_call>", "<arg_key>"),
    ),
    Evidence(
        ToolFormat.LLAMA3,
        'calls are shown as bare JSON with "parameters", and the token for calls is Llama\'s',
        shown=('"parameters"', "<|start_header_id|>"),
        foreign=("<function=",),
        token="<|python_tag|>",
    ),
)


def find_evidence(chat_template_source: str, special_tokens: Collection[str]) -> Evidence | None:
    """The format and the reason for it; None when the template shows no format known here."""
    holding = (one for one in EVIDENCE if one.holds(chat_template_source, special_tokens))
    return next(holding, None)


def find_tool_format(
    chat_template_source: str, special_tokens: Collection[str], named: str | None = None
) -> ToolFormat | None:
    """The checkpoint's format, or the one that a user named (`none` for none).

    A template that shows no format known here gets GENERIC, for which it need not know tools.
    The template is the one that is rendered with tools: "tool_use" where a checkpoint has it. The
    tokens are all special ones, as text, and not only those that have a role such as EOS.
    Raises ConfigError for a name that is no format.
    """
    if named is not None:
        return _named_format(named)
    evidence = find_evidence(chat_template_source, special_tokens)
    return ToolFormat.GENERIC if evidence is None else evidence.format


def open_parser(tool_format: ToolFormat, tools: Sequence[Tool] = ()) -> ToolCallParser:
    """A parser for one answer. By `tools` it knows the types of what is written without any."""
    if tool_format is ToolFormat.QWEN_CODER:
        return QwenCoderParser(ParameterTypes(tools))
    if tool_format is ToolFormat.GLM:
        return GlmParser(ParameterTypes(tools))
    if tool_format in (ToolFormat.HERMES, ToolFormat.GENERIC):
        return HermesParser()
    if tool_format is ToolFormat.LLAMA3:
        return Llama3Parser()
    return MistralParser()


def _named_format(name: str) -> ToolFormat | None:
    if name == NO_FORMAT:
        return None
    try:
        return ToolFormat(name)
    except ValueError:
        names = ", ".join([*ToolFormat, NO_FORMAT])
        raise ConfigError(
            f"Tool format `{name}` is not known", hint=f"the formats are {names}"
        ) from None
