"""What a request asks an answer's text to be, read into a grammar: OpenAI's field and vLLM's.

Every form comes to one `Grammar`, under bounds of size, and is written as EBNF here, so that what
cannot be honoured is refused before an engine sees it. Whether a grammar compiles, and how
long that takes, only the library behind the engine can tell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from deepinfer.generation import Grammar
from deepinfer.text import ebnf
from deepinfer.text.ebnf_grammar import make_ebnf_grammar
from deepinfer.text.grammar_tree import GrammarRefused
from deepinfer.text.json_grammar import make_grammar
from deepinfer.text.json_schema import SchemaRefused
from deepinfer.text.regex_grammar import make_regex_grammar

MAX_SCHEMA_CHARS = 65_536
MAX_REGEX_CHARS = 4_096
MAX_GRAMMAR_CHARS = 65_536
MAX_GUIDED_CHOICES = 1_000
MAX_SHOWN_PLACE = 200

# Known from vLLM, beside the forms; with these values they ask for nothing.
NEUTRAL_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "structural_tag": (None,),
    "disable_any_whitespace": (None, True, False),  # there is none in any case
    "disable_fallback": (None, True, False),
    "disable_additional_properties": (None, True),
    "whitespace_pattern": (None,),
}


def _invalid(rule: str, at: str = "") -> PydanticCustomError:
    context = {"rule": rule, "at": at.removeprefix(".")[:MAX_SHOWN_PLACE]}
    return PydanticCustomError("invalid_value", "{rule}", context)


def _unsupported(rule: str, at: str = "") -> PydanticCustomError:
    context = {"rule": rule, "at": at.removeprefix(".")[:MAX_SHOWN_PLACE]}
    return PydanticCustomError("unsupported_parameter", "{rule}", context)


def _or_none(parse: Callable[[object], Grammar | None]) -> PlainValidator:
    return PlainValidator(lambda value: None if value is None else parse(value))


def _check_size(text: object, most: int, at: str) -> str:
    if not isinstance(text, str) or not text:
        raise _invalid("must be a string that is not empty", at)
    if len(text) > most:
        raise _invalid(f"must have at most {most:,} characters; it has {len(text):,}", at)
    return text


def parse_json_schema(schema: object, param: str, at: str = "") -> Grammar:
    """A grammar for JSON that fits `schema`, which may be an object or its text."""
    if isinstance(schema, str):
        _check_size(schema, MAX_SCHEMA_CHARS, at)
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise _invalid("must be JSON", at) from None
    if not isinstance(schema, dict):
        raise _invalid("must be a JSON schema, which is an object", at)
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    _check_size(text, MAX_SCHEMA_CHARS, at)
    try:
        return Grammar("json_schema", text, ebnf=make_grammar(schema), param=param)
    except SchemaRefused as refusal:
        raise _invalid(refusal.rule, at + refusal.at) from None


def parse_regex(value: object, param: str, at: str = "") -> Grammar:
    text = _check_size(value, MAX_REGEX_CHARS, at)
    try:
        return Grammar("regex", text, ebnf=make_regex_grammar(text), param=param)
    except GrammarRefused as refusal:
        raise _invalid(refusal.rule, at) from None


def parse_ebnf(value: object, param: str, at: str = "", *, is_gbnf: bool = False) -> Grammar:
    text = _check_size(value, MAX_GRAMMAR_CHARS, at)
    try:
        return Grammar("ebnf", text, ebnf=make_ebnf_grammar(text, is_gbnf=is_gbnf), param=param)
    except GrammarRefused as refusal:
        raise _invalid(refusal.rule, at) from None
    except RecursionError:
        raise _invalid("must not nest this deep", at) from None


def parse_choice(value: object, param: str, at: str = "") -> Grammar:
    if not isinstance(value, list) or not value:
        raise _invalid("must be an array of strings that is not empty", at)
    if len(value) > MAX_GUIDED_CHOICES:
        raise _invalid(f"must have at most {MAX_GUIDED_CHOICES:,} strings", at)
    for index, text in enumerate(value):
        _check_size(text, MAX_GRAMMAR_CHARS, f"{at}[{index}]")
    grammar = _check_size(ebnf.choice_grammar(value), MAX_GRAMMAR_CHARS, at)
    return Grammar("ebnf", grammar, param=param)


def parse_json_object(value: Mapping[str, Any], param: str) -> Grammar:
    """A grammar for the format `json_object`: any object, or JSON by a schema beside the type.

    The schema is `schema` to llama.cpp and Together, and `value` to text-generation-inference.
    """
    for name in ("schema", "value"):
        if value.get(name) is not None:
            return parse_json_schema(value[name], param, name)
    return _any_object(param)


def _parse_gbnf(value: object) -> Grammar | None:
    return None if value == "" else parse_ebnf(value, "grammar", is_gbnf=True)


def _any_object(param: str) -> Grammar:
    return Grammar("json", ebnf=ebnf.ANY_OBJECT, param=param)


def _parse_response_format(value: object) -> Grammar | None:
    param = "response_format"
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise _invalid('must be an object such as {"type": "json_object"}')
    if kind == "text":
        return None
    if kind == "json_object":
        return parse_json_object(value, param)
    if kind != "json_schema":
        raise _unsupported("may be `text`, `json_object` or `json_schema`", "type")
    described = value.get("json_schema")
    if not isinstance(described, dict):
        raise _invalid('must be an object such as {"name": "...", "schema": {...}}', "json_schema")
    if type(described.get("strict")) not in (bool, type(None)):
        raise _invalid("must be true or false", "json_schema.strict")
    return parse_json_schema(described.get("schema"), param, "json_schema.schema")


FORMS: Mapping[str, Callable[[object, str, str], Grammar]] = {
    "json": parse_json_schema,
    "regex": parse_regex,
    "choice": parse_choice,
    "grammar": parse_ebnf,
}


def _parse_structured_outputs(value: object) -> Grammar | None:
    if not isinstance(value, dict):
        raise _invalid('must be an object such as {"regex": "..."}')
    for name, neutral in NEUTRAL_OPTIONS.items():
        if name in value and not any(value[name] is n for n in neutral):
            raise _unsupported("is not supported by this server; leave it out", name)
    param = "structured_outputs"
    given = [name for name in FORMS if value.get(name) is not None]
    if type(value.get("json_object")) not in (bool, type(None)):
        raise _invalid("must be true or false", "json_object")
    if value.get("json_object"):
        given.append("json_object")
    if len(given) > 1:
        raise _invalid(f"must not be combined with `{given[0]}`", given[1])
    if not given:
        return None
    name = given[0]
    return _any_object(param) if name == "json_object" else FORMS[name](value[name], param, name)


_TEXT = {"type": "string", "minLength": 1}
_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "object"},
        {
            **_TEXT,
            "maxLength": MAX_SCHEMA_CHARS,
            "contentMediaType": "application/json",
            "contentSchema": {"type": "object"},
        },
    ],
}
_REGEX = {**_TEXT, "maxLength": MAX_REGEX_CHARS}
_CHOICE = {"type": "array", "minItems": 1, "maxItems": MAX_GUIDED_CHOICES, "items": _TEXT}
_EBNF = {**_TEXT, "maxLength": MAX_GRAMMAR_CHARS}
_FLAG = {"anyOf": [{"type": "boolean"}, {"type": "null"}]}
_RESPONSE_FORMAT: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"const": "text"}},
        },
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"const": "json_object"},
                "schema": {"anyOf": [_SCHEMA, {"type": "null"}]},
                "value": {"anyOf": [_SCHEMA, {"type": "null"}]},
            },
        },
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["schema"],
                    "properties": {
                        "name": {"description": "Has no effect"},
                        "description": {"description": "Has no effect"},
                        "schema": _SCHEMA,
                        "strict": {**_FLAG, "description": "Schemas are always kept to"},
                    },
                },
            },
        },
    ]
}
_STRUCTURED_OUTPUTS: dict[str, Any] = {
    "type": "object",
    "description": "At most one of `json`, `json_object`, `regex`, `choice` and `grammar`",
    "properties": {
        **{
            name: {"anyOf": [schema, {"type": "null"}]}
            for name, schema in (
                ("json", _SCHEMA),
                ("regex", _REGEX),
                ("choice", _CHOICE),
                ("grammar", _EBNF),
            )
        },
        "json_object": _FLAG,
        **{name: {"enum": list(values)} for name, values in NEUTRAL_OPTIONS.items()},
    },
}

ResponseFormat = Annotated[
    Grammar | None, _or_none(_parse_response_format), WithJsonSchema(_RESPONSE_FORMAT)
]
StructuredOutputs = Annotated[
    Grammar | None, _or_none(_parse_structured_outputs), WithJsonSchema(_STRUCTURED_OUTPUTS)
]
GuidedJson = Annotated[
    Grammar | None,
    _or_none(lambda value: parse_json_schema(value, "guided_json")),
    WithJsonSchema(_SCHEMA),
]
GuidedRegex = Annotated[
    Grammar | None,
    _or_none(lambda value: parse_regex(value, "guided_regex")),
    WithJsonSchema(_REGEX),
]
GuidedChoice = Annotated[
    Grammar | None,
    _or_none(lambda value: parse_choice(value, "guided_choice")),
    WithJsonSchema(_CHOICE),
]
Gbnf = Annotated[
    Grammar | None,
    _or_none(_parse_gbnf),
    WithJsonSchema({"type": "string", "maxLength": MAX_GRAMMAR_CHARS}),
]
GuidedGrammar = Annotated[
    Grammar | None,
    _or_none(lambda value: parse_ebnf(value, "guided_grammar")),
    WithJsonSchema(_EBNF),
]


class StructuredFields(BaseModel):
    """The fields of a request that say what its answers' text must be; at most one is given."""

    response_format: ResponseFormat = Field(
        default=None,
        description='`{"type": "text"}`, `{"type": "json_object"}`, which may have a `schema`, '
        'or `{"type": "json_schema", '
        '"json_schema": {"name", "schema", "strict"}}`',
    )
    structured_outputs: StructuredOutputs = Field(
        default=None,
        description="vLLM's newer form: one of `json`, `json_object`, `regex`, `choice`, `grammar`",
    )
    guided_json: GuidedJson = Field(
        default=None, description="JSON that fits this schema, which may be its text; as in vLLM"
    )
    guided_regex: GuidedRegex = Field(
        default=None, description="Text that the whole expression matches"
    )
    guided_choice: GuidedChoice = Field(default=None, description="One of these texts")
    guided_grammar: GuidedGrammar = Field(
        default=None, description="Text of this grammar in EBNF, whose first rule is `root`"
    )
    # `grammar` is the property below.
    gbnf: Gbnf = Field(
        default=None,
        alias="grammar",
        description="Text of this grammar in llama.cpp's GBNF; empty for none",
    )

    @property
    def _grammars(self) -> list[Grammar]:
        fields = (getattr(self, name) for name in StructuredFields.model_fields)
        return [grammar for grammar in fields if grammar is not None]

    @property
    def grammar(self) -> Grammar | None:
        return next(iter(self._grammars), None)

    @model_validator(mode="after")
    def _check_one_grammar(self) -> Self:
        grammars = self._grammars
        if len(grammars) > 1:
            raise _invalid(f"must not be combined with `{grammars[0].param}`", grammars[1].param)
        # Once the text is complete nothing but the end may follow.
        for name in ("min_tokens", "ignore_eos"):
            if grammars and getattr(self, name, None):
                raise _invalid(f"must not be combined with `{grammars[0].param}`", name)
        return self
