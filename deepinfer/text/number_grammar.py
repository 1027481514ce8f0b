"""Expressions in EBNF for numbers within bounds: whole ones, fractions, and multiples of a step.

Fractions are bounded digit by digit, so that every text is a number in range. A number with bounds
has at most 15 digits where both ends are given: more of them, rounded to a double, could come out
as the bound itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction

from deepinfer.text import ebnf
from deepinfer.text.json_schema import MAX_ALTERNATIVES, Bound, SchemaRefused

MAX_REMAINDERS = 100  # each is up to 15 rules
STEP_RULE = (
    f"must be a whole number up to {MAX_REMAINDERS}, a power of ten or a part of 1 such as 0.25, "
    f"where the bounds leave more than {MAX_ALTERNATIVES:,} numbers"
)
NO_NUMBER = f"must leave a number of at most {ebnf.MAX_INTEGER_DIGITS} digits between its bounds"
NO_WHOLE_NUMBER = NO_NUMBER.replace("a number", "a whole number")
ZERO = Bound(Decimal(0))


class NumberWriter:
    """Writes numbers from `lowest` to `highest`; None is a side without a bound.

    `define` makes a rule of an expression and returns its name. Every method returns expressions
    that together match the numbers, and raises SchemaRefused if there are none, or for a `step`
    that a grammar cannot count.
    """

    def __init__(self, define: Callable[[str], str], at: str) -> None:
        self._define = define
        self._at = at

    def whole(self, lowest: Bound | None, highest: Bound | None, step: Decimal | None) -> list[str]:
        first, last = -ebnf.MAX_INTEGER, ebnf.MAX_INTEGER
        if lowest is not None:
            first = math.ceil(lowest.value)
            first += first == lowest.value and lowest.is_exclusive
        if highest is not None:
            last = math.floor(highest.value)
            last -= last == highest.value and highest.is_exclusive
        factor = 1 if step is None else Fraction(step).numerator
        least, most = -(-first // factor), last // factor  # of the multiples of `factor`
        if least > most or first > ebnf.MAX_INTEGER or last < -ebnf.MAX_INTEGER:
            raise SchemaRefused(NO_WHOLE_NUMBER, self._at)
        if factor == 1:
            return ebnf.integers(least, most)
        if most - least < MAX_ALTERNATIVES:
            return [ebnf.literal(str(n * factor)) for n in range(least, most + 1)]
        if factor == 10 ** (len(str(factor)) - 1):
            zeros = ebnf.literal(str(factor)[1:])
            found = [f"{one} {zeros}" for one in ebnf.integers(max(least, 1), most)]
            if least < 0:
                found += [f"{one} {zeros}" for one in ebnf.integers(least, min(most, -1))]
            return [*found, '"0"'] if least <= 0 <= most else found
        if factor > MAX_REMAINDERS:
            raise SchemaRefused(STEP_RULE, f"{self._at}.multipleOf")
        found = []
        if last >= 0:
            found += _Multiples(factor, max(first, 0), last, self._define).write()
        if first < 0:
            negative = _Multiples(factor, max(1, -last), -first, self._define).write()
            found += [f'"-" {expression}' for expression in negative]
        return found

    def any(self, lowest: Bound | None, highest: Bound | None, step: Decimal | None) -> list[str]:
        """Whole numbers and fractions; whole ones only where the step is one."""
        if lowest is not None and highest is not None and lowest.value > highest.value:
            raise SchemaRefused(NO_NUMBER, self._at)
        if step is not None and Fraction(step).denominator == 1:
            return self.whole(lowest, highest, step)
        if step is not None and lowest is not None and highest is not None:
            exact_step = Fraction(step)
            least = math.ceil(Fraction(lowest.value) / exact_step)
            most = math.floor(Fraction(highest.value) / exact_step)
            if most - least < MAX_ALTERNATIVES:
                texts = [_text(n * step) for n in range(least, most + 1)]
                return self._found([ebnf.literal(t) for t in texts if _fits(t, lowest, highest)])
        fraction = _Fraction(step, self._at)
        found = []
        if highest is None or highest.value >= 0:
            least_magnitude = ZERO if lowest is None or lowest.value < 0 else lowest
            found += self._unsigned(least_magnitude, highest, fraction)
        if lowest is None or lowest.value < 0:
            below = highest is not None and highest.value <= 0
            magnitudes = self._unsigned(
                _negate(highest) if below and highest is not None else ZERO,
                None if lowest is None else _negate(lowest),
                fraction,
            )
            found += [f'"-" {expression}' for expression in magnitudes]
        return self._found(found)

    def _found(self, expressions: list[str]) -> list[str]:
        if not expressions:
            raise SchemaRefused(NO_NUMBER, self._at)
        return expressions

    def _unsigned(self, lowest: Bound, highest: Bound | None, fraction: _Fraction) -> list[str]:
        """Between bounds of which none is negative."""
        if lowest.value > ebnf.MAX_INTEGER:
            return []
        low, low_digits = _split(lowest.value)
        high, high_digits = (ebnf.MAX_INTEGER + 1, "") if highest is None else _split(highest.value)
        above = _Lower(low_digits, lowest.is_exclusive)
        below = None if highest is None else _Upper(high_digits, highest.is_exclusive)
        # Of the whole numbers at the ends some fractions are out of range, of those between none.
        ends: list[tuple[int, _Lower, _Upper | None]] = [(low, above, below)]
        if low != high:
            ends = [(low, above, None)]
            ends += [(high, _Lower(), below)] if below is not None else []
        found = []
        for whole, lower, upper in ends:
            num_digits = max(1, ebnf.MAX_INTEGER_DIGITS - len(str(whole)))
            behind = fraction.write(lower, upper, num_digits)
            found += [f"{ebnf.literal(str(whole))} {rest}".rstrip() for rest in behind]
        between = ebnf.magnitudes(low + 1, high - 1)
        if between:
            num_digits = ebnf.MAX_INTEGER_DIGITS
            if highest is not None:
                num_digits = max(1, num_digits - len(str(high)))
            behind = fraction.write(_Lower(), None, num_digits)
            found.append(f"{self._define(ebnf.one_of(between))} {self._define(' | '.join(behind))}")
        return found


class _Multiples:
    """Whole numbers without a sign that are multiples of `factor`, as a tree of digits."""

    def __init__(
        self, factor: int, lowest: int, highest: int, define: Callable[[str], str]
    ) -> None:
        self._factor = factor
        self._lowest = lowest
        self._highest = highest
        self._define = define
        self._names: dict[tuple[int, int, int], str | None] = {}

    def write(self) -> list[str]:
        found = ['"0"'] if not self._lowest else []
        return found + _by_digit((digit, self._behind(digit)) for digit in range(1, 10))

    def _behind(self, prefix: int) -> str | None:
        """What may follow these digits; None when no number in range begins with them."""
        counts, is_whole = [], True  # of further digits with which some numbers are in range
        for count in range(len(str(self._highest)) - len(str(prefix)) + 1):
            first, last = prefix * 10**count, (prefix + 1) * 10**count - 1
            if first <= self._highest and last >= self._lowest:
                counts.append(count)
                is_whole &= first >= self._lowest and last <= self._highest
        if not counts:
            return None
        if is_whole:
            return self._free(prefix % self._factor, counts[0], counts[-1])
        options = [] if counts[0] or prefix % self._factor else ['""']
        if counts[-1]:
            options += _by_digit((d, self._behind(prefix * 10 + d)) for d in range(10))
        return self._define(" | ".join(options)) if options else None

    def _free(self, remainder: int, least: int, most: int) -> str | None:
        """From `least` to `most` further digits, behind which nothing remains."""
        key = (remainder, least, most)
        if key not in self._names:
            options = ['""'] if not least and not remainder else []
            if most:
                options += _by_digit(
                    (
                        d,
                        self._free(
                            (remainder * 10 + d) % self._factor, max(0, least - 1), most - 1
                        ),
                    )
                    for d in range(10)
                )
            self._names[key] = self._define(" | ".join(options)) if options else None
        return self._names[key]


class _Lower:
    """What the digits behind a point must come to at least."""

    def __init__(self, digits: str = "", is_exclusive: bool = False) -> None:
        self.digits = digits
        self.is_exclusive = is_exclusive

    @property
    def is_met(self) -> bool:
        """By nothing but zeros."""
        return not self.digits and not self.is_exclusive

    def next(self, digit: str) -> _Lower | None:
        """Behind this digit; None where it is too small."""
        own = self.digits[:1] or "0"
        if digit > own:
            return _Lower()
        return _Lower(self.digits[1:], self.is_exclusive) if digit == own else None


class _Upper:
    """What the digits behind a point must come to at most."""

    def __init__(self, digits: str, is_exclusive: bool) -> None:
        self.digits = digits
        self.is_exclusive = is_exclusive

    @property
    def is_met(self) -> bool:
        return bool(self.digits) or not self.is_exclusive


class _Fraction:
    """What may stand behind a whole number: nothing, or a point and digits."""

    def __init__(self, step: Decimal | None, at: str) -> None:
        self._texts: list[str] | None = None
        self._most_digits = ebnf.MAX_INTEGER_DIGITS
        if step is None:
            return
        parts = Fraction(step)
        if parts == Fraction(1, 10 ** (len(str(parts.denominator)) - 1)):
            self._most_digits = len(str(parts.denominator)) - 1
        elif parts.numerator == 1 and parts.denominator <= MAX_ALTERNATIVES:
            self._texts = [_text(n * step) for n in range(parts.denominator)]
        else:
            raise SchemaRefused(STEP_RULE, f"{at}.multipleOf")

    def write(self, lower: _Lower, upper: _Upper | None, num_digits: int) -> list[str]:
        """Alternatives; none at all where no fraction is in range."""
        if self._texts is not None:
            low = Bound(Decimal(f"0.{lower.digits or 0}"), lower.is_exclusive)
            high = None
            if upper is not None:
                high = Bound(Decimal(f"0.{upper.digits or 0}"), upper.is_exclusive)
            fitting = [text for text in self._texts if _fits(text, low, high)]
            return [ebnf.literal(text.removeprefix("0")) for text in fitting]
        found = ['""'] if lower.is_met and (upper is None or upper.is_met) else []
        digits = _digits(lower, upper, min(num_digits, self._most_digits))
        return found if digits is None else [*found, f'"." {digits}']


def _digits(lower: _Lower, upper: _Upper | None, num_left: int) -> str | None:
    """At least one digit, and up to `num_left`; None where none is in range."""
    if not num_left or (upper is not None and not upper.is_met):
        return None
    if lower.is_met and upper is None:
        return f"[0-9]{{1,{num_left}}}"
    found: list[tuple[int, str | None]] = []
    for digit in "0123456789":
        above, below = lower.next(digit), upper
        if upper is not None:
            own = upper.digits[:1] or "0"
            if digit > own:
                break
            below = _Upper(upper.digits[1:], upper.is_exclusive) if digit == own else None
        if above is None:
            continue
        can_end = above.is_met and (below is None or below.is_met)
        more = _digits(above, below, num_left - 1)
        if more is not None:
            found.append((int(digit), f"({more})?" if can_end else more))
        elif can_end:
            found.append((int(digit), ""))
    options = _by_digit(found)
    return ebnf.one_of(options) if options else None


def _by_digit(rests: Iterable[tuple[int, str | None]]) -> list[str]:
    """Alternatives of which no two begin alike; a digit without a rest does not come."""
    digits: dict[str, str] = {}
    for digit, rest in rests:
        if rest is not None:
            digits[rest] = digits.get(rest, "") + str(digit)
    return [f"[{some}] {rest}".rstrip() for rest, some in digits.items()]


def _split(value: Decimal) -> tuple[int, str]:
    """The whole part, and the digits behind the point without zeros at their end."""
    whole, _, digits = f"{value:f}".partition(".")
    return int(whole), digits.rstrip("0")


def _text(value: Decimal) -> str:
    whole, digits = _split(value.copy_abs())
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def _fits(text: str, lowest: Bound, highest: Bound | None) -> bool:
    value = Decimal(text)
    if value < lowest.value or (value == lowest.value and lowest.is_exclusive):
        return False
    return (
        highest is None
        or value < highest.value
        or (value == highest.value and not highest.is_exclusive)
    )


def _negate(bound: Bound) -> Bound:
    return Bound(bound.value.copy_negate(), bound.is_exclusive)
