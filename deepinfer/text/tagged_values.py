"""How the value of one parameter is written between tags: as plain text, or as JSON.

A string is written as text, so it must not be one that would be read as another value: a schema
that allows both is refused, unless the other is null. Any text fits a schema that says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deepinfer.text import ebnf, string_formats
from deepinfer.text.free_text import COUNTED, text_char
from deepinfer.text.grammar_tree import GrammarWriter, fit_length
from deepinfer.text.json_grammar import make_rules, merge
from deepinfer.text.json_schema import (
    KEYWORDS_OF_TYPE,
    MAX_ALTERNATIVES,
    SchemaRefused,
    check_options,
    lengths,
    says_something,
)
from deepinfer.text.parameter_types import ANY, STRING, Types, type_of_value, types_of_schema
from deepinfer.text.regex_grammar import parse_regex
from deepinfer.text.tool_formats.values import as_json
from deepinfer.text.tool_schema import DATA, Schema

MAX_UNION_DEPTH = 8
NULL = "null"
AMBIGUOUS = "must not allow strings beside other values than null"


class ValueWriter:
    """One parameter on its way; `rules` are those that its expressions need.

    References in its schema lead into `definitions`, which are its `$defs`.
    """

    def __init__(self, definitions: Mapping[str, Any], prefix: str, *, is_on_lines: bool) -> None:
        self.rules: list[str] = []
        self._definitions = definitions
        self._prefix = prefix
        self._is_on_lines = is_on_lines
        self._types: Types = ANY
        self._num_written = 0

    def write(self, schema: Schema) -> list[str]:
        """Expressions, one of which the value's text is. Raises SchemaRefused."""
        self._types = self._types_of(schema)
        if STRING not in self._types:
            return [self._json(schema)]
        return self._texts(schema, 0)

    def _types_of(self, schema: object) -> Types:
        return types_of_schema(schema, {"$defs": self._definitions})

    def _json(self, schema: Schema) -> str:
        if _holds_pattern(self._definitions):  # of characters that might spell a tag
            raise SchemaRefused("must not stand beside `pattern` between tags")
        start, rules = make_rules({**schema, "$defs": self._definitions}, prefix=self._prefix)
        self.rules += rules
        return start

    def _texts(self, schema: object, depth: int) -> list[str]:
        """Of a value that may be a string."""
        self._num_written += 1
        if depth > MAX_UNION_DEPTH or self._num_written > MAX_ALTERNATIVES:
            raise SchemaRefused(f"must not combine more than {MAX_ALTERNATIVES:,} schemas")
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise SchemaRefused("must be a schema that some value fits")
        merged = dict(merge({**schema, "$defs": self._definitions}))
        for keyword in ("anyOf", "oneOf"):
            if keyword in merged:
                return self._union(merged, keyword, depth + 1)
        if "const" in merged:
            return [self._constant(merged["const"], merged)]
        if "enum" in merged:
            options = check_options(merged["enum"], ".enum")
            return [self._constant(value, merged) for value in options]
        return self._free(merged)

    def _union(self, schema: Schema, keyword: str, depth: int) -> list[str]:
        rest = {key: value for key, value in schema.items() if key != keyword}
        if says_something(rest):
            raise SchemaRefused("must stand alone where a value may be a string", f".{keyword}")
        options = check_options(schema[keyword], f".{keyword}")
        texts = [option for option in options if STRING in self._types_of(option)]
        if keyword == "oneOf" and len(texts) > 1:
            raise SchemaRefused("must have one branch for strings; use anyOf", ".oneOf")
        return [text for option in options for text in self._texts(option, depth)]

    def _constant(self, value: object, schema: Schema) -> str:
        if KEYWORDS_OF_TYPE[STRING] & schema.keys():
            raise SchemaRefused("must not stand beside other keywords than `type`", ".enum")
        kind = type_of_value(value)
        if "type" in schema and kind not in self._types_of({"type": schema["type"]}):
            raise SchemaRefused("must have values of the schema's type", ".enum")
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        line = "\n" if self._is_on_lines else ""
        whole = f"{line}{text}{line}"
        if json.loads(as_json(whole, self._types, is_on_lines=self._is_on_lines)) != value:
            raise SchemaRefused("must hold no string that reads like another value", ".enum")
        return ebnf.literal(text)

    def _free(self, schema: Schema) -> list[str]:
        if not says_something(schema):
            return ["text"]
        own = self._types_of(schema)
        if own == {NULL}:
            return [ebnf.literal(NULL)]
        if not own <= {STRING, NULL} or not self._types <= {STRING, NULL}:
            raise SchemaRefused(AMBIGUOUS)
        texts = [self._text(schema)] if STRING in own else []
        return texts + [ebnf.literal(NULL)] * (NULL in own)

    def _text(self, schema: Schema) -> str:
        if "pattern" in schema:
            raise SchemaRefused("is a keyword that is not supported between tags", ".pattern")
        least, most = lengths(schema, "")
        named = self._format(schema.get("format"), least, most)
        if named or (not least and most is None):
            return named or "text"
        return ebnf.counted(COUNTED, least, most, f"{text_char()}*") or ebnf.literal("")

    def _format(self, name: object, least: int, most: int | None) -> str:
        """Nothing where the format is not known, or has texts of other lengths."""
        pattern = string_formats.PATTERNS.get(name) if isinstance(name, str) else None
        fitting = None if pattern is None else fit_length(parse_regex(pattern), least, most)
        if fitting is None:
            return ""
        writer = GrammarWriter(f"{self._prefix}p{len(self.rules)}x")
        expression = writer.write(fitting)
        self.rules += writer.rules
        return expression


def _holds_pattern(schema: object) -> bool:
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        elif isinstance(one, Mapping):
            if isinstance(one.get("pattern"), str):
                return True
            waiting += [value for keyword, value in one.items() if keyword not in DATA]
    return False
