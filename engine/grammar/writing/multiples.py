"""Multiples of a number as expressions over their digits: which they are is seen from their last digits, for factors of
two and five."""

from fractions import Fraction
from functools import lru_cache
from math import lcm

from engine.grammar.language.automaton import Automaton
from engine.grammar.language.writing import write
from engine.grammar.schema.faults import Unplaced
from engine.grammar.schema.steps import split
from engine.grammar.writing.kinds import Numbers
from engine.grammar.writing.numbers import MAX_FRACTION_DIGITS, Bounds, exact_decimal

MAX_ENDINGS = 1000
MAX_PERIOD = 10_000
"""Multiples of a step that are looked through for one that is no multiple of others."""
_DIGITS = "[0-9]*"


def common(multiples: tuple[Fraction, ...]) -> Fraction:
    """The number whose multiples are those of all."""
    out = multiples[0]
    for other in multiples[1:]:
        scale = lcm(out.denominator, other.denominator)
        out = Fraction(lcm(int(out * scale), int(other * scale)), scale)
    return out


def has_multiple(step: Fraction, bounds: Bounds, types: frozenset[str]) -> bool:
    """Whether a multiple of the types lies in the bounds."""
    if types == {"fraction"} and step.denominator == 1:
        return False
    low, high = bounds.low, bounds.high
    if low is None:
        return True if high is None else has_multiple(step, Bounds(-high, None, bounds.high_excluded), types)
    first = -(-low // step)
    near = [(first + more) * step for more in range(3)]  # one is excluded at most, one of two others no integer
    return any(bounds.holds(value) and ("fraction" in types or value.denominator == 1)
               and ("integer" in types or value.denominator > 1) for value in near)  # fmt: skip


def has_other(numbers: Numbers) -> bool:
    """Whether some number is among those that are not multiples of some steps. Raises `Unplaced`."""
    bounds, steps = numbers.bounds, numbers.multiples
    if numbers.types == {"integer"}:
        steps = (*steps, Fraction(1))
    if not steps:
        return bounds.low is None or bounds.low != bounds.high or is_one(bounds.low, numbers)
    step = common(steps)
    period = int(common((step, *numbers.others)) / step)
    if period > MAX_PERIOD:
        raise Unplaced(f"multiples of {exact_decimal(step)} but for others cannot be followed")
    if bounds.low is None and bounds.high is not None:
        first, onward = bounds.high // step, -step
    else:
        first, onward = -(-(bounds.low or 0) // step), step
    return any(is_one(first * step + more * onward, numbers) for more in range(period + 2))


def is_one(value: Fraction, numbers: Numbers) -> bool:
    """Whether a number is among some, but for those that are listed."""
    kind = "integer" if value.denominator == 1 else "fraction"
    return (kind in numbers.types and numbers.bounds.holds(value)
            and all((value / step).denominator == 1 for step in numbers.multiples)
            and not any((value / step).denominator == 1 for step in numbers.others))  # fmt: skip


def endings(step: Fraction) -> list[str] | None:
    """Expressions that of numbers without an exponent only the multiples of a step match all of; None if these do not
    show in few digits."""
    parts = split(step)
    end = None if parts is None else ending(parts[0])
    if parts is None or end is None:
        return None
    return [end, *map(_divisible, parts[1])]


@lru_cache
def _divisible(by: int) -> str:
    """Numbers whose digits, read one by one, leave no remainder."""
    moves: list[dict[int, list[tuple[int, int]]]] = []
    for left in range(by):
        found: dict[int, list[tuple[int, int]]] = {}
        for digit in range(10):
            found.setdefault((left * 10 + digit) % by, []).append((ord("0") + digit, ord("0") + digit))
        moves.append(found)
    whole = write(Automaton(moves, {0})).removeprefix("^").removesuffix("$")
    return f"-?{whole}(?:\\.0{{1,{MAX_FRACTION_DIGITS}}})?"


def ending(step: Fraction) -> str | None:
    """An expression of what ends as a multiple of `step` does, with a sign and zeros in front maybe; None if that
    does not show in few endings. It holds for numbers without an exponent."""
    places = 0
    while (step * 10**places).denominator != 1:
        places += 1
    coefficient = int(step * 10**places)
    size = _digits_that_decide(coefficient)
    if size is None or 10**size // coefficient > MAX_ENDINGS:
        return None
    endings = [str(number).zfill(size) if size else "" for number in range(0, 10**size, coefficient)]
    if size <= places:
        return f"-?{_DIGITS}{_behind_point(endings, places, size)}"
    parts = []
    by_front: dict[str, list[str]] = {}
    for text in endings:
        by_front.setdefault(text[: size - places], []).append(text[size - places :])
    for front, behind in by_front.items():
        point = _behind_point(behind, places, places)
        parts.append(f"(?:{_DIGITS}{front}|{front.lstrip('0') or '0'}){point}")
    return f"-?(?:{'|'.join(parts)})"


def _behind_point(endings: list[str], places: int, size: int) -> str:
    """A point and `places` digits of which the last `size` are one of the endings; zeros at their end may lack."""
    zeros = f"0{{0,{MAX_FRACTION_DIGITS}}}"
    found: list[str] = []
    for text in endings:
        bare = text.rstrip("0")
        if bare:
            found.append(f"{'[0-9]' * (places - size)}{bare}{zeros}")
        else:
            free = places - size
            found.append((f"[0-9]{{1,{free}}}" if free else "0") + zeros)
    may_lack = any(not text.rstrip("0") for text in endings)
    digits = f"(?:\\.(?:{'|'.join(found)}))"
    return f"{digits}?" if may_lack else digits


def _digits_that_decide(coefficient: int) -> int | None:
    """How many digits at the end tell whether a whole number is a multiple; None if no number of them does."""
    twos = fives = 0
    while coefficient % 2 == 0:
        coefficient, twos = coefficient // 2, twos + 1
    while coefficient % 5 == 0:
        coefficient, fives = coefficient // 5, fives + 1
    return max(twos, fives) if coefficient == 1 else None
