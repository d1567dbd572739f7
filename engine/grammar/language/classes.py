"""Classes of characters in ECMA-262's patterns (22.2.1, CharacterClass and what stands in it): read, and written.

In a class only `\\`, `]`, `^` and `-` are special.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from engine.grammar.language.remembered import remembered
from engine.grammar.language.sets import ALL, LAST, Ranges, holds, ranges, without

DIGIT: Ranges = ((48, 57),)
WORD = ranges([(48, 57), (65, 90), (95, 95), (97, 122)])
SPACE = ranges([(9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
                (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)])  # fmt: skip
LINE_ENDS = ranges([(10, 10), (13, 13), (0x2028, 0x2029)])
CLASSES = {
    "d": DIGIT, "D": without(DIGIT), "w": WORD, "W": without(WORD), "s": SPACE, "S": without(SPACE),
}  # fmt: skip
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_SPECIAL = frozenset(map(ord, r"\.+*?()|[]{}^$#&-~/"))
ANY_CHAR, NO_CHAR = r"[\s\S]", r"[^\s\S]"
PROPERTY = re.compile(r"[pP](?:\{[^{}]*\}|[A-Z])")
"""A property of Unicode, behind its backslash."""
CLASS = re.compile(r"((?:[^\]\\]|\\.)*)\]", re.DOTALL)
"""A class, behind its opening bracket."""
_RANGE = re.compile(r"-.", re.DOTALL)
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{0*([0-9A-Fa-f]{1,6})\}")


class NoPatternError(ValueError):
    """What is read is no pattern: a range from high to low, a character beyond Unicode."""


@dataclass(frozen=True, slots=True)
class ReadClass:
    """What stands in a class: characters, and properties as they are written, or none of these."""

    chars: Ranges
    properties: tuple[str, ...]
    negated: bool


@remembered
def read_class(text: str) -> ReadClass:
    """What stands between the brackets of a class. Raises `NoPatternError`."""
    negated = text.startswith("^")
    at = int(negated)
    found: list[tuple[int, int]] = []
    properties: list[str] = []
    while at < len(text):
        if name := PROPERTY.match(text, at + 1) if text[at] == "\\" else None:
            at = name.end()
            properties.append(f"\\{name[0]}")
            continue
        low, at = _member(text, at)
        if isinstance(low, int) and _RANGE.match(text, at):
            high, behind = _member(text, at + 1)
            if isinstance(high, int):
                if low > high:
                    raise NoPatternError(text)
                found.append((low, high))
                at = behind
                continue
        found += [(low, low)] if isinstance(low, int) else low
    return ReadClass(ranges(found), tuple(properties), negated)


def _member(text: str, at: int) -> tuple[int | Ranges, int]:
    """A character of a class, or those of an escape, and the place behind it."""
    if text[at] != "\\":
        return ord(text[at]), at + 1
    kind = text[at + 1 : at + 2]
    if kind in CLASSES:
        return CLASSES[kind], at + 2
    return (8, at + 2) if kind == "b" else escaped(text, at + 1)


def escaped(pattern: str, at: int) -> tuple[int, int]:
    """The character that an escape stands for, and the place behind it; `at` is behind the backslash.

    A backslash at the end is itself. Raises `NoPatternError`.
    """
    if found := _HEX.match(pattern, at):
        code = int(next(filter(None, found.groups())), 16)
        if code > LAST:
            raise NoPatternError(pattern)
        low = _HEX.match(pattern, found.end() + 1) if pattern[found.end() : found.end() + 1] == "\\" else None
        if 0xD800 <= code < 0xDC00 and low and low[2] and 0xDC00 <= int(low[2], 16) < 0xE000:
            return 0x10000 + ((code - 0xD800) << 10) + int(low[2], 16) - 0xDC00, low.end()
        return code, found.end()
    char = pattern[at : at + 1]
    if not char:
        return ord("\\"), at
    letter = pattern[at + 1 : at + 2]
    if char == "c" and letter.isascii() and letter.isalpha():
        return ord(letter) % 32, at + 2
    return _CONTROLS.get(char, ord(char)), at + 1


def folded(chars: Ranges) -> Ranges:
    """With the other case of each character, as ECMA-262's flag i has it without u (22.2.2.7.3, Canonicalize)."""
    found = [alike for alike in _cases() if any(holds(chars, code) for code in alike)]
    return ranges([*chars, *((code, code) for alike in found for code in alike)])


@cache
def _cases() -> tuple[tuple[int, ...], ...]:
    """Characters that are one in upper case, together."""
    found: dict[int, set[int]] = {}
    for char in filter(str.islower, map(chr, range(0x1F000))):
        upper = char.upper()
        if len(upper) == 1 and upper != char and upper.isascii() <= char.isascii():
            found.setdefault(ord(upper), {ord(upper)}).add(ord(char))
    return tuple(map(tuple, found.values()))


@lru_cache(maxsize=256)
def written_class(chars: Ranges) -> str:
    """A set of characters as a pattern of one."""
    if chars == ALL:
        return ANY_CHAR
    other = without(chars)
    negated = bool(chars) and (len(other) < len(chars) or chars[-1][1] == ALL[0][1])
    shown = in_text(other if negated else chars)
    if not shown:
        return ANY_CHAR if negated else NO_CHAR
    if not negated and len(shown) == 1 and shown[0][0] == shown[0][1]:
        return written_char(shown[0][0])
    return f"[{'^' if negated else ''}{class_members(shown)}]"


def class_members(chars: Ranges) -> str:
    """Characters as they stand in a class."""
    return "".join(
        written_char(low) if low == high else f"{written_char(low)}-{written_char(high)}" for low, high in chars
    )


def in_text(chars: Ranges) -> Ranges:
    """Those that UTF-8 can hold, which halves of surrogate pairs are not."""
    return without(ranges([*without(chars), (0xD800, 0xDFFF)]))


def written_char(code: int) -> str:
    """A character as it stands in a pattern, in a class or not."""
    if code in _SPECIAL:
        return f"\\{chr(code)}"
    return chr(code) if 32 <= code < 127 or code > 0xFFFF else f"\\u{code:04X}"
