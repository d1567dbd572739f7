"""Ranges of numbers as regular expressions over their digits, by exact arithmetic.

A number is written without an exponent wherever it is bounded near its size; digits are bounded so that it ends.
"""

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

MAX_EXTRA_DIGITS = 20
"""Digits before the point, beyond those of the bounds, that a number without a bound may have: as many as a uint64."""
MAX_FRACTION_DIGITS = 24
"""Digits behind the point, beyond those of the bounds: a double's shortest form without an exponent has at most 21."""
_INTEGER = f"(?:0|[1-9][0-9]{{0,{MAX_EXTRA_DIGITS - 1}}})"
_FRACTION = f"\\.[0-9]{{1,{MAX_FRACTION_DIGITS}}}"
_TAIL = f"[0-9]{{0,{MAX_FRACTION_DIGITS}}}"
_ZEROS = f"0{{0,{MAX_FRACTION_DIGITS}}}"
_EXPONENT = "[eE][+-]?[0-9]{1,2}"
_SMALL = f"[1-9](?:{_FRACTION})?[eE]-(?:0?[1-9]|[1-9][0-9])"
"""From 0 to 1, both excluded; no exponent leads below the least double, which would be read as 0."""
_LARGE = f"[1-9](?:{_FRACTION})?[eE]\\+?[0-9]{{1,2}}"
"""From 1 on."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """A range of numbers; None has no bound."""

    low: Fraction | None = None
    high: Fraction | None = None
    low_excluded: bool = False
    high_excluded: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether no number is in it."""
        if self.low is None or self.high is None:
            return False
        return self.low > self.high or (self.low == self.high and (self.low_excluded or self.high_excluded))

    def meet(self, other: "Bounds") -> "Bounds":
        """What is in both."""
        out = self
        if other.low is not None and (out.low is None or other.low >= out.low):
            excluded = other.low_excluded or (other.low == out.low and out.low_excluded)
            out = replace(out, low=other.low, low_excluded=excluded)
        if other.high is not None and (out.high is None or other.high <= out.high):
            excluded = other.high_excluded or (other.high == out.high and out.high_excluded)
            out = replace(out, high=other.high, high_excluded=excluded)
        return out

    def holds(self, value: Fraction) -> bool:
        """Whether a number is in it."""
        return not self.meet(Bounds(value, value)).is_empty

    def integers(self) -> tuple[int | None, int | None]:
        """The least and the largest integer in it."""
        low = None if self.low is None else -(-self.low.numerator // self.low.denominator)
        high = None if self.high is None else self.high.numerator // self.high.denominator
        if low is not None and low == self.low and self.low_excluded:
            low += 1
        if high is not None and high == self.high and self.high_excluded:
            high -= 1
        return low, high


UNBOUNDED = Bounds()
_BEYOND = Fraction(10) ** 130
_HUGE = Fraction(10) ** 100
"""A number on one side of this, and without a bound on the other, is below `_BEYOND`, and if above 0 not below its
inverse."""
_EXACT_DIGITS = 17
"""Of huge bounds; between them and the next number of so many digits none is offered: patterns nest only so deep."""


def integers(bounds: Bounds) -> str | None:
    """The integers of a range, without a point and without -0; None if there are none."""
    low, high = bounds.integers()
    if low is not None and high is not None and low > high:
        return None
    reached = _reached(Bounds(None if low is None else Fraction(low), None if high is None else Fraction(high)))
    low = None if reached.low is None else low
    high = None if reached.high is None else high
    parts = []
    if low is None or low < 0:
        below = _naturals(1 if high is None or high >= 0 else -high, None if low is None else -low)
        parts.append(f"-{below}")
    if high is None or high >= 0:
        parts.append(_naturals(max(low or 0, 0), high))
    return _any(parts)


def decimals(bounds: Bounds) -> str | None:
    """All numbers of a range; None if there are none."""
    if bounds.is_empty:
        return None
    bounds = _reached(bounds)
    if bounds == UNBOUNDED:
        return f"-?{_INTEGER}(?:{_FRACTION})?(?:{_EXPONENT})?"
    parts = []
    if bounds.low is None or bounds.low < 0:
        mirrored = Bounds(
            None if bounds.high is None else -bounds.high,
            None if bounds.low is None else -bounds.low,
            bounds.high_excluded,
            bounds.low_excluded,
        )
        below = _positives(mirrored.meet(Bounds(low=Fraction(0), low_excluded=True)))
        parts += [] if below is None else [f"-{below}"]
    above = _positives(bounds.meet(Bounds(low=Fraction(0))))
    parts += [] if above is None else [above]
    return _any(parts) if parts else None


def _reached(bounds: Bounds) -> Bounds:
    """Without bounds that no number comes near which is written without them."""
    if bounds.low is not None and bounds.low < -_BEYOND and (bounds.high is None or bounds.high > -_HUGE):
        bounds = replace(bounds, low=None, low_excluded=False)
    if bounds.high is not None and bounds.high > _BEYOND and (bounds.low is None or bounds.low < _HUGE):
        bounds = replace(bounds, high=None, high_excluded=False)
    if bounds.low is not None and 0 < bounds.low < 1 / _BEYOND and (bounds.high is None or bounds.high >= 1):
        bounds = replace(bounds, low=Fraction(0), low_excluded=True)
    if bounds.high is not None and -1 / _BEYOND < bounds.high < 0 and (bounds.low is None or bounds.low <= -1):
        bounds = replace(bounds, high=Fraction(0), high_excluded=True)
    return bounds


def fraction_digits(value: Fraction) -> str:
    """The digits behind the point of a decimal fraction, without zeros at the end."""
    text = format(exact_decimal(abs(value)), "f")
    return text.partition(".")[2].rstrip("0")


def exact_decimal(value: Fraction) -> Decimal:
    """A decimal fraction as one. Its denominator divides a power of ten."""
    places = 0
    while value.denominator != 1 and (value * 10**places).denominator != 1:
        places += 1
    return Decimal((0 if value >= 0 else 1, tuple(map(int, str(abs(int(value * 10**places))))), -places))


def _positives(bounds: Bounds) -> str | None:
    """Numbers from 0 on; the range has a lower bound, which is not below 0."""
    if bounds.is_empty:
        return None
    low, high = bounds.low, bounds.high
    assert low is not None and low >= 0
    first, last = int(low), None if high is None else int(high)
    parts = []
    if first == last:
        assert high is not None
        tail = _between(fraction_digits(low), fraction_digits(high), not bounds.low_excluded, not bounds.high_excluded)
        parts += _whole(str(first), tail)
    else:
        parts += _whole(str(first), _from(fraction_digits(low), not bounds.low_excluded))
        if last is None or first + 1 <= last - 1:
            parts.append(f"{_naturals(first + 1, None if last is None else last - 1)}(?:{_FRACTION})?")
        if high is not None:
            parts += _whole(str(last), _up_to(fraction_digits(high), not bounds.high_excluded))
    if low == 0 and (high is None or high >= 1):
        parts.append(_SMALL)
    if high is None and (low < 1 or (low == 1 and not bounds.low_excluded)):
        parts.append(_LARGE)
    return _any(parts) if parts else None


Tail = tuple[str | None, bool]
"""Digits behind a point: an expression of at least one (None: there are none), and whether there may be none at all."""


def _whole(integer: str, tail: Tail) -> list[str]:
    digits, may_lack = tail
    if digits is None:
        return [integer] if may_lack else []
    return [f"{integer}(?:\\.{digits})?" if may_lack else f"{integer}\\.{digits}"]


def _after(digit: str, tail: Tail) -> list[str]:
    digits, may_lack = tail
    if digits is None:
        return [digit] if may_lack else []
    return [f"{digit}(?:{digits})?" if may_lack else f"{digit}{digits}"]


def _from(low: str, included: bool) -> Tail:
    """At least, or more than, 0.LOW; LOW ends with no zero."""
    if not low:
        return (f"[0-9]{_TAIL}", True) if included else (f"{_ZEROS}[1-9]{_TAIL}", False)
    if (zeros := _zeros(low)) > 1:
        return _any([*_after(f"0{{{zeros}}}", _from(low[zeros:], included)), f"0{{0,{zeros - 1}}}[1-9]{_TAIL}"]), False
    parts = _after(low[0], _from(low[1:], included))
    if low[0] < "9":
        parts.append(f"{_digit(int(low[0]) + 1, 9)}{_TAIL}")
    return _any(parts), False


def _up_to(high: str, included: bool) -> Tail:
    """At most, or less than, 0.HIGH; HIGH ends with no zero."""
    if not high:
        return (f"0{_ZEROS}", True) if included else (None, False)
    if (zeros := _zeros(high)) > 1:
        return _any([*_after(f"0{{{zeros}}}", _up_to(high[zeros:], included)), f"0{{1,{zeros - 1}}}"]), True
    parts = _after(high[0], _up_to(high[1:], included))
    if high[0] > "0":
        parts.append(f"{_digit(0, int(high[0]) - 1)}{_TAIL}")
    return _any(parts) if parts else None, True


def _between(low: str, high: str, low_included: bool, high_included: bool) -> Tail:
    """From 0.LOW to 0.HIGH, which is not below it."""
    if not low and low_included:
        return _up_to(high, high_included)
    if not high:
        return None, False
    if (zeros := min(_zeros(low), _zeros(high))) > 1:
        inner = _between(low[zeros:], high[zeros:], low_included, high_included)
        parts = _after(f"0{{{zeros}}}", inner)
        return (_any(parts) if parts else None), False
    one, two = int(low[0]) if low else 0, int(high[0])
    if one == two:
        inner = _between(low[1:], high[1:], low_included, high_included)
        parts = _after(high[0], inner)
    else:
        parts = _after(str(one), _from(low[1:], low_included))
        if one + 1 <= two - 1:
            parts.append(f"{_digit(one + 1, two - 1)}{_TAIL}")
        parts += _after(str(two), _up_to(high[1:], high_included))
    return (_any(parts) if parts else None), False


def _zeros(digits: str) -> int:
    """How many zeros they begin with: a run of them is written as one, for patterns nest only so deep."""
    return len(digits) - len(digits.lstrip("0"))


def _naturals(low: int, high: int | None) -> str:
    """From one natural number to another, which is not below it."""
    if low > _HUGE:
        step = 10 ** (len(str(low)) - _EXACT_DIGITS)
        low, high = -(-low // step) * step, None if high is None else max(high // step * step, -(-low // step) * step)
    if high is None:
        if low == 0:
            return _INTEGER
        size = len(str(low))
        return _any([*_by_size(low, 10**size - 1), f"[1-9][0-9]{{{size},{size + MAX_EXTRA_DIGITS - 1}}}"])
    return _any(_by_size(low, high))


def _by_size(low: int, high: int) -> list[str]:
    parts = []
    while low <= high:
        end = min(high, 10 ** len(str(low)) - 1)
        parts.append(_same_size(str(low), str(end)))
        low = end + 1
    return parts


def _same_size(low: str, high: str) -> str:
    """Between two texts of so many digits."""
    size = len(low)
    shared = 0
    while shared < size and low[shared] == high[shared]:
        shared += 1
    prefix, low, high = low[:shared], low[shared:], high[shared:]
    if not low:
        return prefix
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    parts = []
    if low[1:] != "0" * rest:
        parts.append(low[0] + _same_size(low[1:], "9" * rest))
        first += 1
    end = None
    if high[1:] != "9" * rest:
        end = high[0] + _same_size("0" * rest, high[1:])
        last -= 1
    if first <= last:
        parts.append(_digit(first, last) + (f"[0-9]{{{rest}}}" if rest else ""))
    return prefix + _any([*parts, end] if end is not None else parts)


def _digit(low: int, high: int) -> str:
    return str(low) if low == high else f"[{low}-{high}]"


def _any(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"
