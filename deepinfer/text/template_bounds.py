"""A Jinja sandbox in which a template can neither run for ever nor make anything huge.

Jinja's own sandbox keeps a template from the rest of the process. This one counts what a rendering
does, each turn of a loop and each call, against the time that it has, and weighs what is put
together before it is. Nothing here knows chats or prompts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_WEIGHT = 16 * 2**20  # of one value; more characters than any model reads
ITEM_WEIGHT = 64  # of a list or an object, in characters
MAX_METHOD_NUMBER = 2**20  # as an argument of a string's or a number's method
MAX_FILTER_NUMBER = 4096
MAX_INTEGER_BITS = 4096
ACTS_PER_LOOK = 64  # at the clock
# In a format; a star or braces within braces take it from the arguments.
WIDTH = re.compile(r"\d{5}|%[^a-zA-Z%]*\*|\{[^{}]*\{")
# Filters whose numbers are widths, counts or powers.
COUNTING_FILTERS = {"batch", "center", "indent", "int", "round", "slice", "tojson", "wordwrap"}

# Filters to which a text is a sequence of characters.
SEQUENCE_FILTERS = {"batch", "groupby", "list", "map", "max", "min", "slice", "sort", "unique"}


class TemplateTooSlow(Exception):
    """The time of a rendering was over before its template was."""


class _Meter:
    def __init__(self, limit_s: float) -> None:
        self._deadline = time.monotonic() + limit_s
        self._num_acts = 0

    def count(self) -> None:
        self._num_acts += 1
        if self._num_acts % ACTS_PER_LOOK == 0 and time.monotonic() > self._deadline:
            raise TemplateTooSlow


_meter: ContextVar[_Meter] = ContextVar("template_meter")


@contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """What is rendered inside raises TemplateTooSlow when it takes longer."""
    token = _meter.set(_Meter(limit_s))
    try:
        yield
    finally:
        _meter.reset(token)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Renders within a `time_limit` only. A template that outgrows a bound raises TemplateError."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(lambda parts: join(parts))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=_check_printable)
        # They make text and spend time without bound, and no prompt has a use for them.
        del self.globals["lipsum"], self.filters["urlize"]

    def bound_filters(self) -> None:
        """Keep the filters to the bounds; to be called once, when all are there."""
        self.filters = {name: _bounded(name, filter_) for name, filter_ in self.filters.items()}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        elif operator == "+" and isinstance(left, str | list | tuple):
            check_weight(_weigh(left) + _weigh(right))
        return super().call_binop(context, operator, left, right)

    def call(
        __self,
        __context: Context,
        __function: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        count()
        _check_method(__function, [*args, *kwargs.values()])
        return _weighed(super().call(__context, __function, *args, **kwargs))

    def metered(self, items: Iterable[Any]) -> Iterator[Any]:
        """What a loop goes through, each turn of it counted."""
        for item in items:
            count()
            yield item

    def weighed(self, value: Any) -> Any:
        return _weighed(value)

    def joined(self, *parts: Any) -> str:
        return join([str(_weighed(_check_printable(part))) for part in parts])

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Bounder().visit(super()._parse(source, name, filename))
        return template


class _Bounder(NodeTransformer):
    """Writes the counting into a template, where loops turn and values are put together."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _call("metered", [node.iter])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _call("joined", node.nodes)

    def _weigh(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        is_target = getattr(node, "ctx", "load") != "load"  # a pattern, which makes nothing
        is_constant = all(isinstance(child, nodes.Const) for child in node.iter_child_nodes())
        return node if is_target or is_constant else _call("weighed", [node])

    visit_List = visit_Dict = visit_Tuple = _weigh


def _call(method: str, arguments: list[Any]) -> nodes.Expr:
    call = nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)
    call.set_lineno(arguments[0].lineno)
    return call


def count() -> None:
    """One act of a rendering. Raises TemplateTooSlow."""
    _meter.get().count()


def check_weight(weight: int) -> None:
    if weight > MAX_WEIGHT:
        raise jinja2.TemplateError(f"a value would be larger than {MAX_WEIGHT:,} characters")


def join(parts: Iterable[str]) -> str:
    texts = list(parts)
    check_weight(sum(map(len, texts)))
    return "".join(texts)


def _weighed(value: Any) -> Any:
    if isinstance(value, bytes):
        raise jinja2.TemplateError("a template may not make bytes")
    if isinstance(value, str | list | tuple | dict):
        _weigh(value)
    return value


def _weigh(value: Any) -> int:
    """Of its characters and items, counted as often as they would be written out."""
    if isinstance(value, str):
        check_weight(len(value))
        return len(value)
    weight, rest = 0, [value]
    while rest:
        count()
        item = rest.pop()
        weight += ITEM_WEIGHT + (len(item) if isinstance(item, str) else 0)
        if isinstance(item, Mapping):
            rest += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            rest += item
        elif isinstance(item, Namespace):
            raise jinja2.TemplateError("a namespace may not be a part of another value")
        check_weight(weight + ITEM_WEIGHT * len(rest))
    return weight


def _check_product(left: Any, right: Any) -> None:
    for items, number in ((left, right), (right, left)):
        if isinstance(items, str | list | tuple) and isinstance(number, int):
            check_weight(_weigh(items) * number)
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def _check_bits(num_bits: int) -> None:
    if num_bits > MAX_INTEGER_BITS:
        raise jinja2.TemplateError(f"a number would have more than {MAX_INTEGER_BITS:,} bits")


def _check_format(text: str, *arguments: Any) -> None:
    if WIDTH.search(text):
        raise jinja2.TemplateError("a format may not set a width of five digits, nor take one")
    num_places = text.count("%") + text.count("{")
    check_weight(len(text) + num_places * sum(map(_weigh, arguments)))


def _check_join(separator: str, items: Any = ()) -> None:
    size = len(items) if isinstance(items, str | list | tuple) else MAX_WEIGHT // 2
    check_weight(size * max(1, len(str(separator))))


def _check_replace(text: str, old: Any = "", new: Any = "", *_: Any) -> None:
    check_weight(len(text) + text.count(str(old)) * len(str(new)))


def _check_spread(text: str, *arguments: Any) -> None:
    """Each character may come to be as long as the arguments say."""
    numbers = sum(argument for argument in arguments if isinstance(argument, int))
    check_weight(len(text) * (1 + numbers + sum(map(_weigh, arguments))))


GROWING_METHODS: Mapping[str, Callable[..., None]] = {
    "expandtabs": _check_spread,
    "format": _check_format,
    "format_map": _check_format,
    "join": _check_join,
    "replace": _check_replace,
    "translate": _check_spread,
}
GROWING_FILTERS: Mapping[str, Callable[..., None]] = {
    "format": _check_format,
    "indent": lambda text, *given: _check_spread("\n" * (1 + text.count("\n")), *given),
    "join": lambda items, separator="", *_: _check_join(separator, items),
    "replace": _check_replace,
    "wordwrap": _check_spread,
}


def _check_method(function: Any, arguments: list[Any]) -> None:
    """Of strings and numbers. What is defined in a template consists of what is checked itself."""
    if function is Namespace:
        _weigh(arguments)
    # The sandbox wraps the two methods that format.
    method = getattr(function, "__wrapped__", function)
    owner = getattr(method, "__self__", None)
    if isinstance(owner, str | bytes | int | float):
        _check_numbers(arguments, MAX_METHOD_NUMBER)
    if isinstance(owner, str) and (check := GROWING_METHODS.get(method.__name__)) is not None:
        check(owner, *arguments)


def _check_numbers(arguments: Iterable[Any], limit: int) -> None:
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > limit:
            raise jinja2.TemplateError(f"a number may be at most {limit:,} here")


def _check_printable(value: Any) -> Any:
    if isinstance(value, Namespace):
        raise jinja2.TemplateError("a namespace may not be written out")
    return value


def _bounded(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, kept to the bounds. How it wants to be called stands in its attributes."""

    @wraps(filter_)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        count()
        machinery = Context | EvalContext | jinja2.Environment
        value, *rest = [arg for arg in args if not isinstance(arg, machinery)]
        rest += kwargs.values()
        _check_printable(value)
        if name in COUNTING_FILTERS:
            _check_numbers(rest, MAX_FILTER_NUMBER)
        if name in SEQUENCE_FILTERS and isinstance(value, str):
            check_weight(len(value) * ITEM_WEIGHT)
        if (check := GROWING_FILTERS.get(name)) is not None:
            check(value if name == "join" else str(value), *rest)
        return _weighed(filter_(*args, **kwargs))

    return bounded
