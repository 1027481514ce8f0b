"""Write the tables of fields in docs/api.md from the schemas of the bodies: `make docs`.

Each table stands between `<!-- fields: METHOD /path -->` and `<!-- end -->`; what is around them is
written by hand. A test compares the page with what this writes, so that it cannot fall behind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepinfer.server.openapi import BODIES
from deepinfer.server.refused import STANDING

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
TABLE = re.compile(r"(?<=<!-- fields: )(?P<route>[^\n]+?)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
HEAD = "| field | type and bounds | default | standing | |\n|---|---|---|---|---|\n"
INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1  # a field's bound is then the number's own
NULL = {"type": "null"}


@dataclass(frozen=True)
class Row:
    field: str
    type: str
    default: str
    standing: str
    note: str

    def render(self) -> str:
        cells = (f"`{self.field}`", self.type, self.default, self.standing, self.note)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def render_page(page: str) -> str:
    """The page with every table made anew. Raises KeyError for a route that has no body."""

    def render(match: re.Match[str]) -> str:
        return match["route"] + match[2] + render_table(match["route"])

    return TABLE.sub(render, page)


def render_table(route: str) -> str:
    schema = BODIES[route].model_json_schema()
    rows = walk(schema, schema.get("$defs", {}), "")
    return HEAD + "".join(row.render() for row in rows)


def walk(schema: dict[str, Any], definitions: dict[str, Any], path: str) -> Iterator[Row]:
    """A row for each field, required ones first, and after it those of the objects it holds."""
    required = schema.get("required", ())
    for name in sorted(schema["properties"], key=lambda name: name not in required):
        field = schema["properties"][name]
        yield describe_field(path + name, field, is_required=name in required)
        found = find_model(field, definitions)
        if found is not None:
            model, brackets = found
            yield from walk(model, definitions, f"{path}{name}{brackets}.")


def find_model(
    field: dict[str, Any], definitions: dict[str, Any]
) -> tuple[dict[str, Any], str] | None:
    """The schema of the one model that a field holds, and `[]` where it holds many of it."""
    alternatives = [option for option in field.get("anyOf", [field]) if option != NULL]
    if len(alternatives) != 1:
        return None
    (only,) = alternatives
    items = only.get("items", only)
    options = [_resolve(option, definitions) for option in items.get("anyOf", [items])]
    models = [option for option in options if "title" in option and "properties" in option]
    return (models[0], "[]" if "items" in only else "") if len(models) == 1 else None


def _resolve(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    return definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def describe_field(name: str, field: dict[str, Any], *, is_required: bool) -> Row:
    standing = field.get(STANDING, "honoured")
    return Row(
        field=name,
        type="only " + describe_type(field) if standing == "refused" else describe_type(field),
        default="required" if is_required else describe_default(field),
        standing=standing,
        note="" if standing == "refused" else field.get("description", ""),
    )


def describe_default(field: dict[str, Any]) -> str:
    default = field.get("default")
    return "none" if default is None else f"`{json.dumps(_plain(default))}`"


def describe_type(schema: dict[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return ", ".join(f"`{json.dumps(value)}`" for value in values)
    if "anyOf" in schema:
        types = [describe_type(option) for option in schema["anyOf"] if option != NULL]
        return ", or ".join(dict.fromkeys(types))
    if "$ref" in schema:
        return "object"
    kind = schema.get("type", "any")
    describe = {"integer": _number, "number": _number, "array": _array, "string": _string}
    return describe[kind](schema) if kind in describe else str(kind)


def _string(schema: dict[str, Any]) -> str:
    return "string" + _range(schema.get("minLength"), schema.get("maxLength"), " characters")


def _number(schema: dict[str, Any]) -> str:
    lowest, highest = schema.get("minimum"), schema.get("maximum")
    if highest == INT64_MAX:
        return "integer of 64 bits"
    if "exclusiveMinimum" in schema:
        above = f"above {_plain(schema['exclusiveMinimum'])}"
        return f"{schema['type']}, {above} to {_plain(highest)}"
    return str(schema["type"]) + _range(lowest, None if highest == INT32_MAX else highest, "")


def _array(schema: dict[str, Any]) -> str:
    size = _range(schema.get("minItems"), schema.get("maxItems"), " items")
    return f"array of: {describe_type(schema.get('items', {}))}{size.replace(',', ';', 1)}"


def _range(lowest: int | None, highest: int | None, unit: str) -> str:
    if lowest is not None and highest is not None:
        return f", {lowest:,} to {highest:,}{unit}"
    if highest is not None:
        return f", up to {highest:,}{unit}"
    if lowest == 1 and unit:
        return ", not empty"
    return "" if lowest is None else f", {lowest:,}{unit} or more"


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


if __name__ == "__main__":
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
