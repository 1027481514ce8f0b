"""Grammars of calls whose arguments stand between tags: what they allow is read as it is meant.

Parameters come in the schema's order, and none that it does not name. How a value is written is in
`tagged_values.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepinfer.text import ebnf
from deepinfer.text.free_text import COUNTED, JSON_CHARS, text_char, text_rules
from deepinfer.text.json_grammar import check_count
from deepinfer.text.json_schema import COMBINING, SchemaRefused, mapping, read_keywords
from deepinfer.text.tagged_values import ValueWriter
from deepinfer.text.tool_formats.tags import CLOSING, OPENING, Tags
from deepinfer.text.tool_schema import Schema, Tool, arguments_schema, pointer_part

MAX_PARAMETERS = 1_000  # of one tool
PLACE = "#/$defs/tool"  # of a tool's schema, in the schemas of its parameters


def make_tagged_grammar(tools: Sequence[Tool], tags: Tags, *, parallel: bool) -> str:
    """One call to any of `tools`, or several. Raises SchemaRefused for a tool's schema."""
    calls: list[str] = []
    rules: list[str] = []
    num_parameters = 0
    for index, tool in enumerate(tools):
        writer = _CallWriter(tool, tags, prefix=f"c{index}")
        calls.append(writer.write())
        rules += writer.rules
        num_parameters += writer.num_values
        check_count(num_parameters + len(rules))
    root = f"root ::= call{f' ({ebnf.literal(chr(10))} call)*' if parallel else ''}"
    call = f"call ::= {ebnf.one_of(calls)}"
    rules = [*text_rules(tags.after_value).splitlines(), call, *rules]
    if any(f"{COUNTED}_" in rule for rule in rules):
        rules += ebnf.count_rules(COUNTED, text_char())
    return ebnf.with_json_rules(root, rules, JSON_CHARS)


class _CallWriter:
    """One tool on its way; `rules` are those that its expression needs."""

    def __init__(self, tool: Tool, tags: Tags, prefix: str) -> None:
        self.rules: list[str] = []
        self._tool = tool
        self._tags = tags
        self._prefix = prefix
        self._definitions = {"tool": arguments_schema(tool, PLACE)}
        self.num_values = 0

    def write(self) -> str:
        """The expression of a whole call."""
        tags, line = self._tags, "\n" if self._tags.before_name else ""
        start = f"{OPENING}{line}{tags.before_name}{self._tool.name}{tags.after_name}\n"
        end = tags.end if tags.end == CLOSING else f"{tags.end}\n{CLOSING}"
        parts = [self._parameter(name, required) for name, required in self._parameters()]
        return " ".join([ebnf.literal(start), *parts, ebnf.literal(end)])

    def _parameters(self) -> list[tuple[str, bool]]:
        """Each name, and whether it is required."""
        schema = read_keywords(self._definitions["tool"], "")
        for keyword in (*COMBINING, "minProperties", "maxProperties", "propertyNames"):
            if keyword in schema:
                raise SchemaRefused("is supported within `properties` only", f".{keyword}")
        properties, required = mapping(schema, "properties", ""), schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise SchemaRefused("must be an array of strings", ".required")
        names = dict.fromkeys(n for n in properties if properties[n] is not False or n in required)
        names |= dict.fromkeys(required)
        if len(names) > MAX_PARAMETERS:
            raise SchemaRefused(f"must have at most {MAX_PARAMETERS:,} properties", ".properties")
        required_names = set(required)
        return [(name, name in required_names) for name in names]

    def _parameter(self, name: str, is_required: bool) -> str:
        tags = self._tags
        if not name.isprintable() or not name or tags.after_key in name:
            rule = f"must have names of printable characters without `{tags.after_key}`"
            raise SchemaRefused(rule, ".properties")
        line = "\n" if tags.is_value_on_lines else ""
        before = f"{tags.before_key}{name}{tags.after_key}\n{tags.before_value}"
        after = f"{line}{tags.after_value}\n"
        value = ebnf.one_of(self._values(name))
        expression = f"{ebnf.literal(before)} {value} {ebnf.literal(after)}"
        return expression if is_required else f"({expression})?"

    def _values(self, name: str) -> list[str]:
        prefix = f"{self._prefix}v{self.num_values}"
        self.num_values += 1
        writer = ValueWriter(self._definitions, prefix, is_on_lines=self._tags.is_value_on_lines)
        try:
            expressions = writer.write(self._schema_of(name))
        except SchemaRefused as refusal:
            raise SchemaRefused(refusal.rule, f".properties.{name}{refusal.at}") from None
        end = self._tags.after_value
        if any(end in text for text in (*expressions, *writer.rules)):
            raise SchemaRefused(f"must not hold `{end}`, which ends values", f".properties.{name}")
        self.rules += writer.rules
        return expressions

    def _schema_of(self, name: str) -> Schema:
        root = self._definitions["tool"]
        if name in root.get("properties", {}):
            return {"$ref": f"{PLACE}/properties/{pointer_part(name)}"}
        if "additionalProperties" in root:
            return {"$ref": f"{PLACE}/additionalProperties"}
        return {}
