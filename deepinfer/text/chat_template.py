"""Chat messages to prompt text, by the checkpoint's own Jinja template.

The template comes from the engine folder and never from a request. It runs in a sandbox, within
bounds of time and size, with the functions and options that `transformers` gives it, so that a
prompt is the same here and there.
This module knows nothing of tokens, nor of which message fields a route accepts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro

from deepinfer.errors import EngineError, InvalidValue, UnsupportedParameter
from deepinfer.text.folder import REBUILD_HINT, SPECIAL_TOKEN_NAMES, TokenizerFolder
from deepinfer.text.reasoning import CLOSING
from deepinfer.text.template_abilities import Messages, TemplateAbilities, find_abilities
from deepinfer.text.template_bounds import (
    BoundedEnvironment,
    TemplateTooSlow,
    check_weight,
    count,
    time_limit,
)
from deepinfer.validation import MAX_SHOWN_CHARS

# What a caller may pass on to a template besides the messages.
TEMPLATE_ARGUMENTS = frozenset(
    {"tools", "documents", "enable_thinking", "thinking", "reasoning_effort", "verbosity"}
)
# What a template reads and a caller may not pass on.
OUR_VARIABLES = frozenset({"messages", "add_generation_prompt"})
MAX_DETAIL_CHARS = 500
# Stands at the end of a message that is to be continued, while the template is rendered. A private
# character, beside those of `special_text.py`; the space shows whether the template trims.
FINAL_MARK = chr(0x10_FFFD)
SPACED_MARK = f"{FINAL_MARK} "
MAX_RENDER_S = 1.0  # many times what the longest conversation takes
TOO_SLOW = (
    f"The model's chat template takes more than {MAX_RENDER_S:g} s for these messages; send less"
)


class ChatTemplate:
    """The templates of one engine, compiled once and shared by every request and by threads."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """`sources` are Jinja texts by name. Raises EngineError for one that does not compile."""
        environment = _environment()
        self._templates = {
            name: _compile(environment, name, text) for name, text in sources.items()
        }
        self._special_tokens = dict(special_tokens)
        self._sources = dict(sources)
        self._open_names = {
            name: _find_open_names(environment, text) for name, text in sources.items()
        }
        self._abilities: dict[str, TemplateAbilities] = {}

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate:
        """Read an engine's `tokenizer/` folder, which may lack a template. Raises EngineError."""
        files = TokenizerFolder(folder)
        template = cls(files.chat_templates, files.special_tokens)
        if template.is_available:
            template.abilities(has_tools=False)  # found now, and not while a request waits
        return template

    @property
    def is_available(self) -> bool:
        return bool(self._templates)

    def abilities(self, *, has_tools: bool) -> TemplateAbilities:
        """What the template that such messages are rendered with can do; tried once."""
        name = next((name for name in _names(has_tools) if name in self._sources), None)
        if name is None:
            return TemplateAbilities()
        if name not in self._abilities:

            def render(messages: Messages) -> str:
                return self.render(messages, arguments={"tools": []} if name == "tool_use" else {})

            self._abilities[name] = find_abilities(render)
        return self._abilities[name]

    def source(self, *, has_tools: bool) -> str:
        """The text of the template that such messages are rendered with; empty without one."""
        found = (self._sources[name] for name in _names(has_tools) if name in self._sources)
        return next(found, "")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continues_final_message: bool = False,
        arguments: Mapping[str, Any] = MappingProxyType({}),
        limit_s: float = MAX_RENDER_S,
    ) -> str:
        """The prompt, its special tokens included: encode it without adding them again.

        With `continues_final_message` it ends within the last message, whose text the model then
        goes on with. `arguments` are of TEMPLATE_ARGUMENTS, or others that the template reads and
        does not set itself. Raises UnsupportedParameter for another, and InvalidValue when the
        template refuses the messages or the model has none, or when it takes the longest time
        that there is; TemplateTooSlow with a shorter `limit_s`.
        """
        chosen = self._choose(has_tools=arguments.get("tools") is not None)
        known = TEMPLATE_ARGUMENTS | self._open_names[chosen]
        for name in arguments.keys() - known:
            raise UnsupportedParameter(
                f"Chat template argument `{name[:MAX_SHOWN_CHARS]}` is not supported; this model's "
                f"template takes {', '.join(sorted(known))}",
                param=name,
            )
        template = self._templates[chosen]
        final = str(messages[-1].get("content") or "") if continues_final_message else ""
        if continues_final_message:
            messages = [*messages[:-1], {**messages[-1], "content": final + SPACED_MARK}]
        # Templates ask `tools is not none`, so the two must be defined when they are not given.
        variables = {"tools": None, "documents": None, **self._special_tokens, **arguments}
        try:
            with time_limit(limit_s):
                prompt = template.render(
                    messages=messages, add_generation_prompt=add_generation_prompt, **variables
                )
        except TemplateTooSlow:
            if limit_s < MAX_RENDER_S:
                raise
            raise InvalidValue(TOO_SLOW, param="messages") from None
        except Exception as error:  # a template may do anything with what it was given
            raise InvalidValue(_refusal(error), param="messages") from error
        return _end_in_final_message(prompt, final) if continues_final_message else prompt

    def _choose(self, *, has_tools: bool) -> str:
        """The name of a template."""
        for name in _names(has_tools):
            if name in self._templates:
                return name
        raise InvalidValue(
            "This model has no chat template, so it takes no messages; send a prompt to "
            "/v1/completions instead",
            param="messages",
        )


def _names(has_tools: bool) -> tuple[str, ...]:
    return ("tool_use", "default") if has_tools else ("default",)


def _end_in_final_message(prompt: str, content: str) -> str:
    """Cut the prompt at the mark behind `content`, where the model goes on.

    A template may trim the content or leave out its thoughts. One that shows anything else than
    what was said is refused, since the answer would not go on from the client's text.
    """
    shown, mark, _ = prompt.rpartition(FINAL_MARK)
    if not prompt.startswith(SPACED_MARK, len(shown)):
        shown = shown.removesuffix(content[len(content.rstrip()) :])
    if not mark or not shown.rstrip().endswith(content.rpartition(CLOSING)[2].strip()):
        raise InvalidValue(
            "The model's chat template does not show the final message as it is, so it cannot be "
            "continued",
            param="continue_final_message",
        )
    return shown.replace(SPACED_MARK, "").replace(FINAL_MARK, "")


def _refusal(error: Exception) -> str:
    detail = str(error)[:MAX_DETAIL_CHARS].rstrip(". \n") or type(error).__name__
    return f"The model's chat template refuses these messages: {detail}"


def _compile(environment: BoundedEnvironment, name: str, source: str) -> jinja2.Template:
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise EngineError(
            f"chat template `{name}` does not compile: line {error.lineno}: {error.message}",
            hint=REBUILD_HINT,
        ) from error


def _find_open_names(environment: BoundedEnvironment, source: str) -> frozenset[str]:
    """Variables that a template reads and a caller may give.

    A name that the template sets as well is one only if it asks whether that is defined.
    """
    tree = environment.parse(source)
    ours = {*OUR_VARIABLES, *SPECIAL_TOKEN_NAMES, *environment.globals}
    set_here = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    asked = [one for one in tree.find_all(nodes.Test) if one.name in ("defined", "undefined")]
    defaulted = [one for one in tree.find_all(nodes.Filter) if one.name in ("default", "d")]
    checked = {one.node.name for one in (*asked, *defaulted) if isinstance(one.node, nodes.Name)}
    return frozenset(meta.find_undeclared_variables(tree) - ours - (set_here - checked))


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.bound_filters()
    return environment


class GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; a prompt is the same without.

    The body becomes a call block, as in transformers, because that is a scope: a variable set in
    it is not seen after it.
    """

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes `<`, `>`, `&` and `'` for HTML."""
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    if indent is None:
        return encoder.encode(value)
    # An indent stands before every item, as often as that is nested.
    pieces: list[str] = []
    num_chars = 0
    for piece in encoder.iterencode(value):
        count()
        num_chars += len(piece)
        check_weight(num_chars)
        pieces.append(piece)
    return "".join(pieces)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
