"""Sets of characters as ranges of code points, and how a grammar in EBNF names them.

xgrammar compiles a class of characters to sequences of bytes. Of "all but these", and of ranges
that cross from one form of UTF-8 into another, it makes sequences that are no UTF-8 or match
anything; so every range written here is one run of bytes, whose last bytes go all the way or whose
first bytes stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Ranges = tuple[tuple[int, int], ...]  # first and last, in order, not adjoining

# Every character that a text may hold: no NUL, which ends texts in C, and no half of a pair.
ANY: Ranges = ((1, 0xD7FF), (0xE000, 0x10FFFF))
DIGITS: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))

MAX_OF_FORM = (0x7F, 0x7FF, 0xFFFF, 0x10FFFF)  # by the count of bytes in UTF-8
BITS_OF_BYTE = 6  # of every byte behind the first


def char(one: str) -> Ranges:
    return ((ord(one), ord(one)),)


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return tuple(found)


def without(ranges: Ranges, others: Ranges) -> Ranges:
    found: list[tuple[int, int]] = []
    for first, last in ranges:
        for other_first, other_last in others:
            if other_last < first or other_first > last:
                continue
            if other_first > first:
                found.append((first, other_first - 1))
            first = other_last + 1
        if first <= last:
            found.append((first, last))
    return tuple(found)


def common(ranges: Ranges, others: Ranges) -> Ranges:
    return without(ranges, without(ranges, others))


def negate(ranges: Ranges) -> Ranges:
    return without(ANY, ranges)


def write_class(ranges: Ranges) -> str:
    """An expression for one character of these."""
    runs = (run for first, last in ranges for run in _split_forms(first, last))
    return "[" + "".join(map(_write_run, runs)) + "]"


def _write_run(run: tuple[int, int]) -> str:
    first, last = run
    return _escape(first) if first == last else f"{_escape(first)}-{_escape(last)}"


def _escape(code: int) -> str:
    one = chr(code)
    return one if one.isascii() and one.isalnum() else f"\\U{code:08x}"


def _split_forms(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Apart where characters have more bytes."""
    for top in MAX_OF_FORM:
        if first <= min(last, top):
            yield from _split_runs(first, min(last, top), top)
            first = top + 1


def _split_runs(first: int, last: int, top: int) -> Iterator[tuple[int, int]]:
    """Apart so that bytes behind the first one that differs take all of their values."""
    for num_bytes in range(1, MAX_OF_FORM.index(top) + 1):
        rest = (1 << BITS_OF_BYTE * num_bytes) - 1  # the values of so many last bytes
        if first & ~rest == last & ~rest:
            break
        if first & rest:
            yield from _split_runs(first, first | rest, top)
            yield from _split_runs((first | rest) + 1, last, top)
            return
        if last & rest != rest:
            yield from _split_runs(first, (last & ~rest) - 1, top)
            yield from _split_runs(last & ~rest, last, top)
            return
    yield first, last
