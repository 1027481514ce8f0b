"""From a JSON schema to a grammar whose every text is valid JSON without white space that fits it.

The libraries' own conversion allows any amount of white space between any two tokens, which models
have been seen to write until the limit of length, and takes no notice of keywords that it does not
know. Here a keyword is honoured, or is an annotation, or is refused by name. Texts may be fewer
than the schema allows: properties come in the schema's order, none is written beside those that a
schema names, and numbers have at most 15 digits.

Knows no request and no library; the time that a grammar takes to compile is not judged here.
"""

from __future__ import annotations

import itertools
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
    check_options,
    constants,
    count,
    has_type,
    join,
    lengths,
    literals,
    mapping,
    pointer_parts,
    read_keywords,
    says_something,
    step_of,
    types_of,
    value_types,
)
from deepinfer.text.number_grammar import NumberWriter

MAX_DEPTH = 32  # schemas within schemas, by which the grammar's rules nest as well
MAX_RULES = 5_000
EMPTY = '""'  # as an alternative of a rule
MAX_ONE_OF = 64  # each branch is compared with every other
MAX_PERMUTED = 300  # sets of items that an array without repetitions may have begun with


def make_grammar(schema: object) -> str:
    """The grammar of a schema. Raises SchemaRefused."""
    start, rules = make_rules(schema)
    return ebnf.with_json_rules(f"root ::= {start}", rules)


def make_rules(schema: object, prefix: str = "") -> tuple[str, list[str]]:
    """The rule that a schema begins with, and all of its rules, whose names begin with `prefix`.

    They use those of `ebnf.with_json_rules`, which are not among them. Raises SchemaRefused.
    """
    return _Converter(schema, prefix).convert()


def check_count(num_rules: int) -> None:
    """Raises SchemaRefused for more rules than one grammar may have."""
    if num_rules > MAX_RULES:
        raise SchemaRefused(f"must not need more than {MAX_RULES:,} rules as a grammar")


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
        merged = read_keywords(schema, at)
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
                merged = join(merged, read_keywords(part, at), at)
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
        parts = pointer_parts(reference)
        if parts is None:
            raise SchemaRefused("must point into the schema itself, as in `#/$defs/name`", at)
        found = self._root
        for key in parts:
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
        names = self._names_of(schema, at)
        given = names if isinstance(names, list) else None
        if not properties and not required and (given is None or others is False):
            return self._map(others, names, least or 0, most, at, depth)
        named: Schema = dict.fromkeys(given or (), others) if not properties else {}
        unnamed = {name: others for name in required if name not in properties}
        named = self._check_names({**named, **properties, **unnamed}, names, set(required), at)
        if (least or 0) > len(set(required)) or (most is not None and most < len(named)):
            rule = "is supported where `required` and `properties` already see to it"
            keyword = "maxProperties" if (least or 0) <= len(set(required)) else "minProperties"
            raise SchemaRefused(rule, f"{at}.{keyword}")
        return '"{" ' + self._properties(named, set(required), at, depth) + ' "}"'

    def _names_of(self, schema: Schema, at: str) -> Schema | list[str] | None:
        """What `propertyNames` says: a schema of strings, or all of the names; None for nothing."""
        at = f"{at}.propertyNames"
        given = schema.get("propertyNames", True)
        if given is False:
            return []
        if given is True:
            return None
        if not isinstance(given, dict):
            raise SchemaRefused("must be a schema that some value fits", at)
        merged = self._merge(given, at)
        if "type" in merged and "string" not in types_of(merged, at):
            return []
        merged = {key: value for key, value in merged.items() if key != "type"}
        if "const" in merged or "enum" in merged:
            literals([merged["const"]] if "const" in merged else merged["enum"], merged, at)
            return [name for name in _values(merged) if isinstance(name, str)]
        return (
            {**merged, "type": "string"} if says_something(merged) or merged.get("format") else None
        )

    def _check_names(
        self, named: Schema, names: Schema | list[str] | None, required: set[str], at: str
    ) -> Schema:
        """Those of `named` that `propertyNames` allows."""
        if names is None:
            return named
        at = f"{at}.propertyNames"
        if isinstance(names, list):
            allowed = set(names)
        elif names.keys() & {"pattern", "format", "anyOf", "oneOf"}:
            rule = "may have `enum`, `const` and lengths only beside named properties"
            raise SchemaRefused(rule, at)
        else:
            least, most = lengths(names, at)
            allowed = {n for n in named if least <= len(n) and (most is None or len(n) <= most)}
        for name in named.keys() & required:
            if name not in allowed:
                raise SchemaRefused("must allow the names in `required`", at)
        return {name: value for name, value in named.items() if name in allowed}

    def _map(
        self,
        others: object,
        names: Schema | list[str] | None,
        least: int,
        most: int | None,
        at: str,
        depth: int,
    ) -> str:
        """An object of any names. A name may come twice, so it has one property for certain."""
        if least > 1:
            raise SchemaRefused("may be at most 1 where no names are given", f"{at}.minProperties")
        if others is False or most == 0:
            if least:
                raise SchemaRefused("leaves no property to write", f"{at}.minProperties")
            return '"{}"'
        name = "string"
        if isinstance(names, dict):
            name = self._visit(names, f"{at}.propertyNames", depth)
        member = f'{name} ":" {self._visit(others, f"{at}.additionalProperties", depth)}'
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
        if schema.get("uniqueItems") and (most is None or most > 1):
            return self._distinct(schema, least, most, at)
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

    def _distinct(self, schema: Schema, least: int, most: int | None, at: str) -> str:
        """An array of some of a few values in any order, none of them twice.

        A rule goes on from each set of values that have been written.
        """
        items = schema.get("items")
        merged = self._merge(items, f"{at}.items") if isinstance(items, dict) else {}
        if types_of(merged, at) == ["boolean"] and not {"const", "enum", "anyOf"} & merged.keys():
            merged = {"enum": [False, True]}
        rule = "is supported on arrays of an `enum` of a few values that are no arrays or objects"
        values = _values(merged)
        if "prefixItems" in schema or not values or any(isinstance(v, list | dict) for v in values):
            raise SchemaRefused(rule, f"{at}.uniqueItems")
        kinds = types_of(merged, f"{at}.items") if "type" in merged else ["value"]
        fitting = [value for value in values if has_type(value, kinds)]
        texts: dict[tuple[bool, Any], str] = {}
        for value in fitting:
            # 1 and 1.0 are the same value, 1 and true are not.
            texts.setdefault((type(value) is bool, value), literals([value], {}, at))
        alternatives = list(texts.values())
        most = len(alternatives) if most is None else min(most, len(alternatives))
        if most < least:
            raise SchemaRefused("leaves too few values to write", f"{at}.minItems")
        num_sets = sum(math.comb(len(alternatives), size) for size in range(most))
        if num_sets > MAX_PERMUTED:
            raise SchemaRefused(f"{rule}: there are too many ways to begin", f"{at}.uniqueItems")
        rests: dict[frozenset[int], str] = {}
        for size in range(most - 1, -1, -1):
            for chosen in map(frozenset, itertools.combinations(range(len(alternatives)), size)):
                comma = '"," ' if size else ""
                options = [
                    f"{comma}{text} {rests.get(chosen | {index}, '')}".rstrip()
                    for index, text in enumerate(alternatives)
                    if index not in chosen
                ]
                options += [EMPTY] if size >= least else []
                rule_name = f"{self._prefix}u{len(self._rules)}"
                rests[chosen] = self._define(rule_name, " | ".join(options))
        return f'"[" {rests.get(frozenset(), "")} "]"'

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
        least, most = lengths(schema, at)
        node = string_formats.read_form(schema, least, most, at)
        body = "" if node is None else self._write(node)
        return f'"\\"" {body or ebnf.string(least, most)} "\\""'

    def _write(self, node: Node) -> str:
        """As a rule of its own, with those that it needs."""
        name = f"{self._prefix}p{len(self._rules)}"
        writer = GrammarWriter(f"{name}x", in_json=True)
        self._define(name, writer.write(node))
        self._rules += writer.rules
        return name

    def _integer(self, schema: Schema, at: str, depth: int) -> str:
        return ebnf.one_of(self._numbers(at).whole(*bounds(schema, at), step_of(schema, at)))

    def _number(self, schema: Schema, at: str, depth: int) -> str:
        return ebnf.one_of(self._numbers(at).any(*bounds(schema, at), step_of(schema, at)))

    def _numbers(self, at: str) -> NumberWriter:
        def define(expression: str) -> str:
            return self._define(f"{self._prefix}d{len(self._rules)}", expression)

        return NumberWriter(define, at)


def _values(schema: Schema) -> list[Any]:
    """Those that a schema has listed; none where it has not."""
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def _separated(item: str, least: int, most: int | None) -> str:
    """So many items with commas between them."""
    if most == 0:
        return ""
    rest = ebnf.repeat(f'"," {item}', max(0, least - 1), None if most is None else most - 1)
    return f"({item} {rest})" if least else f"({item} {rest})?"
