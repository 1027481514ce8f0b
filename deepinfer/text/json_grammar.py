"""From a JSON schema to a grammar whose every text is valid JSON without white space that fits it.

The libraries' own conversion allows any amount of white space between any two tokens, which models
have been seen to write until the limit of length, and takes no notice of keywords that it does not
know. Here a keyword is honoured, or is an annotation, or is refused by name. Texts may be fewer
than the schema allows: properties come in the schema's order, none is written beside those that a
schema names, and numbers have at most 15 digits.

Knows no request and no library; the time that a grammar takes to compile is not judged here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from deepinfer.text import ebnf, string_formats
from deepinfer.text.grammar_tree import GrammarWriter, Node
from deepinfer.text.json_schema import (
    KEYWORDS_OF_TYPE,
    Schema,
    SchemaRefused,
    are_apart,
    bounds,
    check_keywords,
    check_options,
    constants,
    count,
    join,
    limit,
    literals,
    mapping,
    says_something,
    types_of,
    value_types,
)

MAX_DEPTH = 32  # schemas within schemas, by which the grammar's rules nest as well
MAX_RULES = 5_000
# Numbers with bounds beyond this are written whole: with fractions behind more digits, xgrammar has
# been seen to make loops.
MAX_WHOLE_OF_FRACTION = 99
EMPTY = '""'  # as an alternative of a rule
MAX_ONE_OF = 64  # each branch is compared with every other


def make_grammar(schema: object) -> str:
    """The grammar of a schema. Raises SchemaRefused."""
    start, rules = make_rules(schema)
    return f"root ::= {start}{ebnf.JSON_RULES}" + "\n".join(rules) + "\n"


def make_rules(schema: object, prefix: str = "") -> tuple[str, list[str]]:
    """The rule that a schema begins with, and all of its rules, whose names begin with `prefix`.

    They use JSON_RULES, which are not among them. Raises SchemaRefused.
    """
    return _Converter(schema, prefix).convert()


def merge(schema: Schema) -> Schema:
    """What a schema says with all that its $ref and allOf lead to. Raises SchemaRefused."""
    return _Converter(schema, prefix="")._merge(schema, "")


class _Converter:
    """One schema on its way; every subschema becomes one rule, however often it is referred to."""

    def __init__(self, root: object, prefix: str) -> None:
        self._root = root
        self._prefix = prefix
        self._rules: list[str] = []
        self._names: dict[int, str] = {}  # id of a subschema -> its rule
        self._kept: list[object] = []  # so that no id is used twice
        self._writers: dict[str, Callable[[Schema, str, int], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
        }

    def convert(self) -> tuple[str, list[str]]:
        return self._visit(self._root, "", 0), self._rules

    def _visit(self, schema: object, at: str, depth: int) -> str:
        """The name of the rule for a subschema."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            raise SchemaRefused("must be a schema that some value fits", at)
        known = self._names.get(id(schema))
        if known is not None:
            return known
        if len(self._kept) >= MAX_RULES:
            raise SchemaRefused(f"must not have more than {MAX_RULES:,} schemas")
        if depth > MAX_DEPTH:
            raise SchemaRefused(f"must not nest deeper than {MAX_DEPTH} schemas", at)
        name = f"{self._prefix}s{len(self._kept)}"
        self._kept.append(schema)
        self._names[id(schema)] = name
        self._define(name, self._expression(self._merge(schema, at), at, depth + 1))
        return name

    def _define(self, name: str, expression: str) -> str:
        if len(self._rules) >= MAX_RULES:
            raise SchemaRefused(f"must not need more than {MAX_RULES:,} rules as a grammar")
        self._rules.append(f"{name} ::= {expression}")
        return name

    # Keywords that combine schemas

    def _merge(self, schema: Schema, at: str) -> Schema:
        """A schema without $ref and allOf: what they lead to stands beside its own keywords."""
        check_keywords(schema, at)
        merged = schema
        seen = {id(schema)}
        while "$ref" in merged or "allOf" in merged:
            parts, rest = self._take_parts(merged, at)
            merged = rest
            for part in parts:
                if not isinstance(part, dict):
                    raise SchemaRefused("may refer to and combine objects only", at)
                if id(part) in seen:
                    raise SchemaRefused("must not refer to itself without end", at)
                seen.add(id(part))
                check_keywords(part, at)
                merged = join(merged, part, at)
        return merged

    def _take_parts(self, schema: Schema, at: str) -> tuple[list[object], Schema]:
        rest = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        parts: list[object] = []
        if "$ref" in schema:
            parts.append(self._resolve(schema["$ref"], f"{at}.$ref"))
        if "allOf" in schema:
            parts += check_options(schema["allOf"], f"{at}.allOf")
        return parts, rest

    def _resolve(self, reference: object, at: str) -> object:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise SchemaRefused("must point into the schema itself, as in `#/$defs/name`", at)
        found = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise SchemaRefused("points to nothing in the schema", at)
        return found

    def _expression(self, schema: Schema, at: str, depth: int) -> str:
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._union(schema, keyword, at, depth)
        if "const" in schema:
            return literals([schema["const"]], schema, at)
        if "enum" in schema:
            return literals(check_options(schema["enum"], f"{at}.enum"), schema, at)
        types = types_of(schema, at)
        return " | ".join(self._typed(kind, schema, at, depth) for kind in types)

    def _union(self, schema: Schema, keyword: str, at: str, depth: int) -> str:
        rest = {key: value for key, value in schema.items() if key != keyword}
        options = check_options(schema[keyword], f"{at}.{keyword}")
        branches = []
        for index, option in enumerate(options):
            place = f"{at}.{keyword}[{index}]"
            if not says_something(rest):
                branches.append(option)
            elif isinstance(option, dict):
                branches.append(join(rest, self._merge(option, place), place))
            else:
                raise SchemaRefused("must be an object beside other keywords", place)
        if keyword == "oneOf":
            self._check_apart(branches, f"{at}.oneOf")
        return " | ".join(
            self._visit(branch, f"{at}.{keyword}[{index}]", depth)
            for index, branch in enumerate(branches)
        )

    def _check_apart(self, branches: list[Any], at: str) -> None:
        """A value must fit one branch and no other, which a grammar cannot see to."""
        if len(branches) > MAX_ONE_OF:
            raise SchemaRefused(f"must have at most {MAX_ONE_OF} branches; use anyOf", at)
        merged = [self._merge(b, at) if isinstance(b, dict) else {} for b in branches]
        for index, one in enumerate(merged):
            if not all(self._is_apart(one, other) for other in merged[:index]):
                raise SchemaRefused(
                    "must have branches that differ in type or in the constant of a required "
                    "property; use anyOf",
                    at,
                )

    def _is_apart(self, one: Schema, other: Schema) -> bool:
        if are_apart(value_types(one), value_types(other)):
            return True
        if are_apart(constants(one), constants(other)):
            return True
        shared = set(one.get("required", ())) & set(other.get("required", ()))
        return any(
            are_apart(self._constants_of(one, name), self._constants_of(other, name))
            for name in shared
        )

    def _constants_of(self, schema: Schema, name: str) -> set[str]:
        value = schema.get("properties", {}).get(name)
        return constants(self._merge(value, "")) if isinstance(value, dict) else set()

    # One type

    def _typed(self, kind: str, schema: Schema, at: str, depth: int) -> str:
        has_format = kind == "string" and str(schema.get("format")) in string_formats.PATTERNS
        if kind not in self._writers or not (KEYWORDS_OF_TYPE[kind] & schema.keys() or has_format):
            return kind
        return self._writers[kind](schema, at, depth)

    def _object(self, schema: Schema, at: str, depth: int) -> str:
        properties = mapping(schema, "properties", at)
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise SchemaRefused("must be an array of strings", f"{at}.required")
        others = schema.get("additionalProperties", True)
        least, most = count(schema, "minProperties", at), count(schema, "maxProperties", at)
        if not properties and not required:
            return self._map(others, least or 0, most, at, depth)
        unnamed = {name: others for name in required if name not in properties}
        named = {**properties, **unnamed}
        if (least or 0) > len(set(required)) or (most is not None and most < len(named)):
            rule = "is supported where `required` and `properties` already see to it"
            keyword = "maxProperties" if (least or 0) <= len(set(required)) else "minProperties"
            raise SchemaRefused(rule, f"{at}.{keyword}")
        return '"{" ' + self._properties(named, set(required), at, depth) + ' "}"'

    def _map(self, others: object, least: int, most: int | None, at: str, depth: int) -> str:
        """An object of any names. A name may come twice, so it has one property for certain."""
        if least > 1:
            raise SchemaRefused("may be at most 1 where no names are given", f"{at}.minProperties")
        if others is False or most == 0:
            if least:
                raise SchemaRefused("leaves no property to write", f"{at}.minProperties")
            return '"{}"'
        member = f'string ":" {self._visit(others, f"{at}.additionalProperties", depth)}'
        return f'"{{" {_separated(member, least, most)} "}}"'

    def _properties(self, named: Schema, required: set[str], at: str, depth: int) -> str:
        """Named properties in order; each rule goes on from one place, with or without a comma."""
        first, later = "", ""
        for name, schema in reversed(list(named.items())):
            if schema is False and name not in required:
                continue
            value = self._visit(schema, f"{at}.properties.{name}", depth)
            pair = f"{ebnf.literal(json.dumps(name, ensure_ascii=False) + ':')} {value}"
            rest = later
            later = f'"," {pair} {rest}'
            begun = f"{pair} {rest}"
            if name not in required:
                later, begun = f"{later} | {rest or EMPTY}", f"{begun} | {first or EMPTY}"
            first = self._define(f"{self._prefix}f{len(self._rules)}", begun)
            later = self._define(f"{self._prefix}n{len(self._rules)}", later)
        return first

    def _array(self, schema: Schema, at: str, depth: int) -> str:
        prefix = schema.get("prefixItems", [])
        if not isinstance(prefix, list):
            raise SchemaRefused("must be an array of schemas", f"{at}.prefixItems")
        least, most = count(schema, "minItems", at) or 0, count(schema, "maxItems", at)
        if most is not None and most < least:
            raise SchemaRefused("must not be below minItems", f"{at}.maxItems")
        items = schema.get("items", True if not prefix or least > len(prefix) else False)
        if items is False:
            if least > len(prefix):
                raise SchemaRefused("leaves no item to write", f"{at}.minItems")
            most = len(prefix) if most is None else min(most, len(prefix))
        prefix = prefix[:most]
        names = [self._visit(s, f"{at}.prefixItems[{i}]", depth) for i, s in enumerate(prefix)]
        # An item that no array has room for need not be a schema that a value fits.
        rest = self._visit(items, f"{at}.items", depth) if most is None or most > len(names) else ""
        return '"[" ' + self._items(names, rest, least, most) + ' "]"'

    def _items(self, prefix: list[str], rest: str, least: int, most: int | None) -> str:
        if not prefix:
            return _separated(rest, least, most) if rest else ""
        more = None if most is None else most - len(prefix)
        tail = ebnf.repeat(f'"," {rest}', max(0, least - len(prefix)), more) if rest else ""
        for index in range(len(prefix) - 1, -1, -1):
            comma = '"," ' if index else ""
            whole = f"{comma}{prefix[index]} {tail}"
            if index >= least:
                whole = f"{whole} | {EMPTY}"
            tail = self._define(f"{self._prefix}i{len(self._rules)}", whole)
        return tail

    def _string(self, schema: Schema, at: str, depth: int) -> str:
        least, most = count(schema, "minLength", at) or 0, count(schema, "maxLength", at)
        if most is not None and most < least:
            raise SchemaRefused("must not be below minLength", f"{at}.maxLength")
        node = string_formats.read_form(schema, least, most, at)
        body = "" if node is None else self._write(node)
        return f'"\\"" {body or ebnf.repeat("char", least, most)} "\\""'

    def _write(self, node: Node) -> str:
        """As a rule of its own, with those that it needs."""
        name = f"{self._prefix}p{len(self._rules)}"
        writer = GrammarWriter(f"{name}x", in_json=True)
        self._define(name, writer.write(node))
        self._rules += writer.rules
        return name

    def _integer(self, schema: Schema, at: str, depth: int) -> str:
        lowest, highest = bounds(schema, at)
        return ebnf.one_of(ebnf.integers(lowest, highest))

    def _number(self, schema: Schema, at: str, depth: int) -> str:
        """Whole numbers in range, and fractions if the range is a small one."""
        lowest, highest = bounds(schema, at)
        top = math.floor(limit(schema, "maximum", at, ebnf.MAX_INTEGER)) - 1
        bottom = math.floor(-limit(schema, "minimum", at, -ebnf.MAX_INTEGER)) - 1
        forms = ebnf.integers(lowest, highest)
        for sign, least, most in (("", max(0, lowest), top), ('"-" ', max(0, -highest), bottom)):
            if max(abs(lowest), abs(highest)) <= MAX_WHOLE_OF_FRACTION:
                forms += [f"{sign}{whole} fraction" for whole in ebnf.magnitudes(least, most)]
        return ebnf.one_of(forms)


def _separated(item: str, least: int, most: int | None) -> str:
    """So many items with commas between them."""
    if most == 0:
        return ""
    rest = ebnf.repeat(f'"," {item}', max(0, least - 1), None if most is None else most - 1)
    return f"({item} {rest})" if least else f"({item} {rest})?"
