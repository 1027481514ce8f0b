"""What may stand in the query of a stored response's routes, and the page that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import QueryParams

from deepinfer.errors import InvalidValue, UnsupportedParameter
from deepinfer.server.responses_api.items import Item
from deepinfer.validation import show_value

# As in the OpenAI API.
DEFAULT_LIMIT = 20
MAX_LIMIT = 100

# By name, the values that ask for nothing: a stored response is shown whole, as it was answered.
REFUSED: Mapping[str, tuple[str, ...]] = {
    "stream": ("false",),
    "starting_after": (),
    "include": (),
    "include[]": (),
    "include_obfuscation": ("false",),
}
PAGE_PARAMETERS: list[dict[str, Any]] = [
    {
        "name": "limit",
        "in": "query",
        "schema": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_LIMIT,
            "default": DEFAULT_LIMIT,
        },
    },
    {
        "name": "order",
        "in": "query",
        "schema": {"enum": ["asc", "desc"], "default": "desc"},
    },
    {
        "name": "after",
        "in": "query",
        "description": "Id of an item: the page begins behind it",
        "schema": {"type": "string"},
    },
]


@dataclass(frozen=True)
class PageQuery:
    limit: int
    is_descending: bool
    after: str | None


def check_query(query: QueryParams) -> None:
    """Raises UnsupportedParameter."""
    for name, neutral in REFUSED.items():
        if name in query and query[name] not in neutral:
            raise UnsupportedParameter(
                f"`{name}` is not supported by this server; leave it out", param=name
            )


def read_page(query: QueryParams) -> PageQuery:
    """Raises InvalidValue or UnsupportedParameter."""
    check_query(query)
    limit, order = query.get("limit", str(DEFAULT_LIMIT)), query.get("order", "desc")
    is_number = limit.isascii() and limit.isdecimal() and len(limit) <= len(str(MAX_LIMIT))
    if not is_number or not 1 <= int(limit) <= MAX_LIMIT:
        raise InvalidValue(
            f"`limit` must be a number from 1 to {MAX_LIMIT}; {show_value(limit)} was given",
            param="limit",
        )
    if order not in ("asc", "desc"):
        raise InvalidValue(
            f"`order` must be `asc` or `desc`; {show_value(order)} was given", param="order"
        )
    return PageQuery(int(limit), order == "desc", query.get("after"))


def find_page(items: Sequence[Item], query: PageQuery) -> tuple[list[Item], bool]:
    """The items of the page, and whether there are more. Raises InvalidValue."""
    ordered = list(reversed(items)) if query.is_descending else list(items)
    if query.after is not None:
        places = [place for place, item in enumerate(ordered) if item.id == query.after]
        if not places:
            raise InvalidValue(
                f"`after` must be the id of one of the items; {show_value(query.after)} was given",
                param="after",
            )
        ordered = ordered[places[0] + 1 :]
    return ordered[: query.limit], len(ordered) > query.limit
