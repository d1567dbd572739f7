"""The terminals of a grammar: strings and numbers as they are spelled in JSON text."""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any

from engine.grammar.language.classes import NO_CHAR
from engine.grammar.language.expression import LanguageError
from engine.grammar.language.items import looks_around
from engine.grammar.language.writing import in_slashes
from engine.grammar.schema.faults import Unplaced
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import quote
from engine.grammar.writing.kinds import Numbers, Texts
from engine.grammar.writing.multiples import common, ending, endings, has_multiple, has_other, is_one
from engine.grammar.writing.numbers import Bounds, decimals, exact_decimal, integers
from engine.grammar.writing.texts import (
    CHAR,
    SIMPLE_CHAR,
    SIMPLE_STRING,
    STRING,
    is_text,
    length_text,
    pattern_text,
    simple_pattern_text,
    spelled,
)

MAX_PLAIN_DIGITS = 40
"""Listed numbers of more digits are written with an exponent."""
MAX_LENGTH = 1_000_000_000
"""Of a string whose characters are counted; a limit beyond it is none, for no answer reaches it."""
_QUOTE = json.JSONEncoder().encode
MAX_STATES = 15
"""Of strings that several patterns are found in, counted as if each were or were not found yet at each length; where
there are more, an answer's strings are of printable ASCII without quotes and backslashes, which cost a tenth, and at
most `MAX_COSTLY_LENGTH` long."""
MAX_COSTLY_LENGTH = 20
MAX_LOOKED_LENGTH = 1024
"""Of an answer's strings with a pattern that looks around, where they are counted."""
MAX_GUIDED_LENGTH = 100
RARE = "\U0010fffd"
"""A character for private use, before which a text is any text: once it has come a mask costs as before."""
MAX_UNPROBED_STATES = 4096
"""Strings of more are tried before they are followed."""
_SIMPLE_TEXT = f"^{SIMPLE_CHAR}*$"
_EXACT_IN_LIBRARY = 2**53
_UNBOUNDED_IN_LIBRARY = 10**15
_SHAPE = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?"
_NO_INTEGER = r"-?(?:0|[1-9][0-9]*)\.[0-9]*[1-9][0-9]*"


class Terminals:
    """Terminals by their definitions, each defined once."""

    def __init__(self, strings: Strings, *, narrows: bool = False) -> None:
        """With `narrows` strings that cost much are only of simple characters."""
        self._strings = strings
        self._narrows = narrows
        self._costly: dict[str, None] = {}
        self._names: dict[str, str] = {}
        self._patterns: dict[tuple[str, bool], list[str]] = {}
        self._free: dict[tuple[str | None, tuple[str, ...], tuple[str, ...]], str] = {}
        """Terminals of names that are not listed, by what `names` was asked for."""

    def lines(self) -> list[str]:
        """The definitions."""
        return [f"{name}:{body}" for body, name in self._names.items()]

    def costly(self) -> list[str]:
        """The definitions of each terminal that may turn out to be too complex where it is followed, `T` first."""
        bodies = {name: body for body, name in self._names.items()}
        parts = {name: [part for part in bodies[name].split("&") if part in bodies] for name in self._costly}
        return ["\n".join([f"T:{bodies[name]}", *(f"{part}:{bodies[part]}" for part in parts[name])]) for name in parts]

    def define(self, body: str) -> str:
        """The name of the terminal with this definition."""
        return self._names.setdefault(body, f"T{len(self._names)}")

    def _all(self, parts: list[str]) -> str:
        """A terminal of what all of these definitions hold."""
        return self.define(parts[0] if len(parts) == 1 else "&".join(map(self.define, parts)))

    def texts(self, texts: Texts, *, alone: bool = True) -> list[str]:
        """Terminals of these strings; none if there are none, of which one that is not alone is not asked.

        Raises `Unplaced`.
        """
        if texts.most is not None and texts.least > texts.most:
            return []
        if texts.words is not None:
            words = self.words(texts)
            return [self.define(_listed(words))] if words else []
        if texts.least > MAX_LENGTH:
            raise Unplaced(f"a string of more than {MAX_LENGTH} characters cannot be asked for")
        most = None if texts.most is None or texts.most > MAX_LENGTH else texts.most
        try:
            parts = self._parts(texts, most)
        except LanguageError as error:
            raise Unplaced(f"a pattern cannot be followed: {error}") from None
        may_lack = len(parts) > 1 or any(NO_CHAR in pattern or looks_around(pattern) for pattern in texts.patterns)
        if alone and may_lack and self._strings.is_empty(texts.patterns, texts.least, most):
            return []
        return [self._together(texts, parts, most), *self._guide(texts, most)]

    def _guide(self, texts: Texts, most: int | None) -> list[str]:
        """A terminal of some of these strings, beside which masks of the others cost a tenth.

        The library takes whole slices of a vocabulary where it sees that a terminal goes on with any text. It does not
        see it where a pattern is searched for, but it does of any text before one that fulfils the pattern.
        """
        patterns = [pattern for pattern in texts.patterns if not self._is_free(pattern)]
        found = self._strings.fulfilling(patterns[0]) if len(patterns) == 1 and most is None else None
        but = [word for pattern in texts.patterns for word in self._strings.but_for(pattern) or ()]
        if not found or texts.least > MAX_GUIDED_LENGTH or any(RARE in word for word in but):
            return []
        text = RARE * max(texts.least - len(found), 1) + found
        return [self.define(in_slashes(f'"{CHAR}*{quote(spelled(text)[1:-1])}"'))]

    def _parts(self, texts: Texts, most: int | None, *, is_simple: bool = False) -> list[str]:
        """Definitions that only these strings match all of, or with `is_simple` only those of simple characters."""
        parts = [part for pattern in texts.patterns for part in self._pattern(pattern, is_simple=is_simple)]
        if texts.least or most is not None:
            parts.append(in_slashes(length_text(texts.least, most, is_simple=is_simple)))
        return parts

    def _together(self, texts: Texts, parts: list[str], most: int | None) -> str:
        """A terminal of the strings that match all parts, or of those of simple characters among them."""
        num_patterns = sum(len(self._pattern(pattern)) for pattern in texts.patterns if not self._is_free(pattern))
        states = 2**num_patterns * (most or texts.least or 1)
        if num_patterns > 2 and states > MAX_STATES and self._narrows:
            short = None if most is None else min(most, MAX_COSTLY_LENGTH)
            with suppress(LanguageError):
                if not self._strings.is_empty((*texts.patterns, _SIMPLE_TEXT), texts.least, short):
                    parts = self._parts(texts, short, is_simple=True)
        elif self._narrows and (most or 0) > MAX_LOOKED_LENGTH and any(map(looks_around, texts.patterns)):
            is_empty = self._strings.is_empty(texts.patterns, texts.least, MAX_LOOKED_LENGTH)
            parts = parts if is_empty else self._parts(texts, MAX_LOOKED_LENGTH)
        terminal = self._all(parts or [in_slashes(STRING)])
        if num_patterns > 2 or (num_patterns and states > MAX_UNPROBED_STATES) or (num_patterns > 1 and most):
            self._costly[terminal] = None
        return terminal

    def _is_free(self, pattern: str) -> bool:
        """Whether it is found in all strings but some that are listed, which costs next to nothing."""
        return self._strings.but_for(pattern) is not None

    def words(self, texts: Texts) -> list[str] | None:
        """Those strings, if they are listed. Raises `Unplaced`."""
        if texts.words is None:
            return None
        return [word for word in texts.words if is_text(word) and self._fits(word, texts)]

    def names(self, pattern: str | None, but: Sequence[str], but_patterns: Sequence[str]) -> str:
        """A terminal of the strings in which a pattern is found (None: all) and none of the others is."""
        asked = (pattern, tuple(but), tuple(but_patterns))
        if asked not in self._free:
            self._free[asked] = self._names_but(pattern, [word for word in but if is_text(word)], but_patterns)
        return self._free[asked]

    def _names_but(self, pattern: str | None, words: list[str], patterns: Sequence[str]) -> str:
        left = [in_slashes(STRING)] if pattern is None else self._pattern(pattern)
        others = [_listed(words)] if words else []
        others += [self._all(self._pattern(other)) for other in patterns]
        if not others:
            return self._all(left)
        return self.define(f"{'&'.join(map(self.define, left))}&~({'|'.join(others)})")

    def _pattern(self, pattern: str, *, is_simple: bool = False) -> list[str]:
        """Definitions that only the strings in which the pattern is found match all of."""
        key = (pattern, is_simple)
        if key not in self._patterns:
            others = () if self._strings.fulfilling(pattern) == "" else self._strings.but_for(pattern)
            if others is None:
                text_of = simple_pattern_text if is_simple else pattern_text
                parts = [in_slashes(text_of(part)) for part in self._strings.all_of(pattern)]
            else:
                words = list(filter(is_text, others))
                parts = [in_slashes(SIMPLE_STRING if is_simple else STRING)]
                parts += [f"~{_listed(words)}"] if words else []
            self._patterns[key] = parts
        return self._patterns[key]

    def _fits(self, word: str, texts: Texts) -> bool:
        if len(word) < texts.least or (texts.most is not None and len(word) > texts.most):
            return False
        try:
            return all(self._strings.finds(pattern, word) for pattern in texts.patterns)
        except LanguageError as error:
            raise Unplaced(f"a pattern beside listed values cannot be followed: {error}") from None

    def numbers(self, numbers: Numbers) -> str | None:
        """A terminal of these numbers, or a rule's body; None if there are none. Raises `Unplaced`."""
        if numbers.values is not None:
            listed = [value for value in numbers.values if is_one(Fraction(value), numbers)]
            return self.define(in_slashes("|".join(map(_spellings, listed)))) if listed else None
        if not numbers.types or numbers.bounds.is_empty:
            return None
        if numbers.others:
            return self._but_multiples(numbers) if has_other(numbers) else None
        if numbers.multiples:
            return self._multiples(numbers, common(numbers.multiples))
        parts = [integers(numbers.bounds) if numbers.types == {"integer"} else decimals(numbers.bounds)]
        if numbers.types == {"fraction"}:
            if (
                numbers.bounds.low is not None
                and numbers.bounds.low == numbers.bounds.high
                and not is_one(numbers.bounds.low, numbers)
            ):
                return None
            parts.append(_NO_INTEGER)
        return None if parts[0] is None else self._all([in_slashes(part) for part in parts if part])

    def _multiples(self, numbers: Numbers, step: Fraction) -> str | None:
        bounds = numbers.bounds
        if numbers.types == {"integer"}:
            step = common((step, Fraction(1)))
        if not has_multiple(step, bounds, numbers.types):
            return None
        end = ending(step)
        if end is None:
            return _library_multiples(step, bounds)
        parts = [integers(bounds) if numbers.types == {"integer"} else decimals(bounds), end, _SHAPE]
        parts += [_NO_INTEGER] if numbers.types == {"fraction"} else []
        return self._all([in_slashes(part) for part in parts if part])

    def _but_multiples(self, numbers: Numbers) -> str:
        """Numbers that are no multiples of others, written without an exponent."""
        bounds = numbers.bounds
        parts = [integers(bounds) if numbers.types == {"integer"} else decimals(bounds), _SHAPE]
        parts += [_NO_INTEGER] if numbers.types == {"fraction"} else []
        parts += _digits(common(numbers.multiples)) if numbers.multiples else []
        but = [self._all(list(map(in_slashes, _digits(step)))) for step in numbers.others]
        return self._all([*(in_slashes(part) for part in parts if part), *(f"~{name}" for name in but)])


def _digits(step: Fraction) -> list[str]:
    """Expressions of the multiples of a step. Raises `Unplaced`."""
    found = endings(step)
    if found is None:
        raise Unplaced(f"'multipleOf' {exact_decimal(step)} beside others cannot be followed")
    return found


def _library_multiples(step: Fraction, bounds: Bounds) -> str:
    """Multiples in the library's own words, which count in doubles and have no others for this."""
    if step.denominator != 1 or step >= 2**31:
        raise Unplaced(f"'multipleOf' {exact_decimal(step)} cannot be followed exactly")
    low, high = bounds.integers()
    low = -_UNBOUNDED_IN_LIBRARY if low is None else low
    high = _UNBOUNDED_IN_LIBRARY if high is None else high
    if max(abs(low), abs(high)) > _EXACT_IN_LIBRARY:
        raise Unplaced(f"'multipleOf' {step} beside bounds beyond 2^53 cannot be followed exactly")
    return f'%json {{"type": "integer", "multipleOf": {int(step)}, "minimum": {low}, "maximum": {high}, %s}}'


def _spellings(value: Any) -> str:
    """A listed number in plain digits, and as the schema has it if that is another way."""
    exact = Fraction(value)
    plain = format(exact_decimal(exact), "f")
    given = str(value).lower() if isinstance(value, Decimal) else plain
    sign, exponent = ("+?", given.partition("e")[2]) if "e" in given else ("", "")
    written = {re.escape(plain)} if len(plain) <= MAX_PLAIN_DIGITS else set()
    if exponent:
        digits = exponent.lstrip("+-")
        sign = "-" if exponent.startswith("-") else "\\+?"
        written.add(f"{re.escape(given.partition('e')[0])}[eE]{sign}0?{digits}")
    else:
        written.add(re.escape(given))
    return "|".join(sorted(written))


def _listed(words: list[str]) -> str:
    """The body of a terminal of these strings: one expression is read faster than many literals."""
    if len(words) == 1:
        return quoted(spelled(words[0]))
    return in_slashes(f'"(?:{"|".join(quote(spelled(word)[1:-1]) for word in words)})"')


def quoted(text: str) -> str:
    """A text as a literal of Lark's notation."""
    return _QUOTE(text).replace("\x7f", "\\u007f")
