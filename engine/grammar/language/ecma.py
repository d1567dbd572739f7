"""Patterns as ECMA-262 reads them, in words that mean the same to Rust's regex syntax and to Python's `re`.

JSON Schema's patterns are ECMA-262's (2020-12 core, section 6.4), and JavaScript and TypeScript are where most come
from. Digits and words are ASCII, `\\s` has U+FEFF and not U+0085, `.` no end of a line, and in a class only `\\`, `]`,
`^` and `-` are special. What both languages refuse, such as references to groups, is passed on as it is.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache

from engine.grammar.language.counts import MAX_POSITIONS, positions
from engine.grammar.language.expression import LanguageError
from engine.grammar.language.properties import property_chars
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
_LARK = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|#[^\n]*|/(?P<pattern>(?:\\.|[^/\\])+)/(?P<flags>[imslux]*)', re.DOTALL)
"""What a pattern is in Lark's notation, and what could look like one: strings and comments."""
_RANGE = re.compile(r"-[^\]]")
_COUNT = re.compile(r"\{\d+(?:,\d*)?\}")
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{0*([0-9A-Fa-f]{1,6})\}")
_PROPERTY = re.compile(r"[pP](?:\{[^{}]*\}|[A-Z])")
_GROUP = re.compile(r"\?P?<[A-Za-z_]\w*>")
_FLAGS = re.compile(r"\?([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])")


def check_size(pattern: str) -> None:
    """Raise `LanguageError` for a pattern that is too large once its counts are written out."""
    if positions(pattern) > MAX_POSITIONS:
        raise LanguageError(f"written out, its counts make more than {MAX_POSITIONS} characters")


@remembered
def translated(pattern: str) -> str:
    """The pattern in other words. To translate it twice changes nothing more.

    Raises `LanguageError` where its counts make it too large for anything to be made of it.
    """
    check_size(pattern)
    return Translation(pattern).text()


def lark_translated(grammar: str) -> str:
    """A grammar in Lark's notation, in whose patterns `\\d`, `\\w`, `\\s` and `.` mean what they mean elsewhere.

    In classes, what else Rust's syntax has (sets in sets, `[[:alpha:]]`) stays as it is.
    """
    return _LARK.sub(_lark_pattern, grammar)


def _lark_pattern(found: re.Match[str]) -> str:
    if found["pattern"] is None:
        return found[0]
    check_size(found["pattern"])
    pattern = Translation(found["pattern"], dot_is_any="s" in found["flags"], keeps_classes=True).text()
    return f"/{pattern}/{found['flags']}"


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
    shown = _in_text(other if negated else chars)
    if not shown:
        return ANY_CHAR if negated else NO_CHAR
    if not negated and len(shown) == 1 and shown[0][0] == shown[0][1]:
        return written_char(shown[0][0])
    return f"[{'^' if negated else ''}{_members(shown)}]"


def _members(chars: Ranges) -> str:
    return "".join(
        written_char(low) if low == high else f"{written_char(low)}-{written_char(high)}" for low, high in chars
    )


def _in_text(chars: Ranges) -> Ranges:
    """Those that UTF-8 can hold, which halves of surrogate pairs are not."""
    return without(ranges([*without(chars), (0xD800, 0xDFFF)]))


def written_char(code: int) -> str:
    """A character as it stands in a pattern, in a class or not."""
    if code in _SPECIAL:
        return f"\\{chr(code)}"
    return chr(code) if 32 <= code < 127 or code > 0xFFFF else f"\\u{code:04X}"


class Translation:
    """One pass over one pattern."""

    def __init__(self, pattern: str, *, dot_is_any: bool = False, keeps_classes: bool = False) -> None:
        self._pattern = pattern
        self._at = 0
        self._is_wrong = False
        """It is no pattern: a range from high to low, a character beyond Unicode."""
        self._keeps_classes = keeps_classes
        self._dot_is_any = [dot_is_any]
        """By group, whether `.` is any character there (the flag s)."""

    def text(self) -> str:
        """The whole pattern; as it came if it is none, to be refused by whoever compiles it."""
        parts = []
        while self._at < len(self._pattern) and not self._is_wrong:
            parts.append(self._next())
        return self._pattern if self._is_wrong else "".join(parts)

    def class_text(self, chars: Ranges) -> str:
        """How one character of a set is written."""
        return written_class(chars)

    def char_text(self, code: int) -> str:
        """How a character outside of classes is written."""
        return written_char(code)

    def property_text(self, members: Ranges, properties: Sequence[str], *, negated: bool = False) -> str:
        """How a class of some characters and properties of Unicode (`\\p{L}`) is written."""
        if not members and not negated and len(properties) == 1:
            return properties[0]
        return f"[{'^' if negated else ''}{_members(_in_text(members))}{''.join(properties)}]"

    def spelled_out(self, members: Ranges, properties: Sequence[str], *, negated: bool = False) -> str:
        """The same without properties. Raises `LanguageError` for one whose characters are not known here."""
        found = list(members)
        for name in properties:
            chars = property_chars(name[2:])
            if chars is None:
                raise LanguageError(f"{name[:50]} is not known beside lookaround and in complements")
            found += chars if name[1] == "p" else without(chars)
        return self.class_text(without(ranges(found)) if negated else ranges(found))

    def _next(self) -> str:
        char = self._pattern[self._at]
        self._at += 1
        if self._keeps_classes and char not in "\\[.()":
            return char
        match char:
            case "\\":
                return self._kept_escape() if self._keeps_classes else self._escape()
            case "[":
                return self._kept_class() if self._keeps_classes else self._class()
            case ".":
                return ANY_CHAR if self._dot_is_any[-1] else self.class_text(without(LINE_ENDS))
            case "(":
                return self._group()
            case ")":
                if len(self._dot_is_any) > 1:
                    self._dot_is_any.pop()
                return ")"
            case "{":
                return "{" if _COUNT.match(self._pattern, self._at - 1) else r"\{"
            case "}":
                return "}" if self._closes_count() else r"\}"
            case "]":
                return r"\]"
        return char if char in "|*+?^$" else self.char_text(ord(char))

    def _closes_count(self) -> bool:
        opened = self._pattern.rfind("{", 0, self._at)
        found = _COUNT.match(self._pattern, opened) if opened >= 0 else None
        return found is not None and found.end() == self._at

    def _group(self) -> str:
        self._dot_is_any.append(self._dot_is_any[-1])
        name = None if self._keeps_classes else _GROUP.match(self._pattern, self._at)
        if name:
            self._at = name.end()
            return "(?:"
        if flags := _FLAGS.match(self._pattern, self._at):
            self._at = flags.end()
            on, off, end = flags[1], flags[2] or "", flags[3]
            if end == ")":  # from here on, in the group around
                self._dot_is_any.pop()
            if "s" in on + off:
                self._dot_is_any[-1] = "s" in on
            kept = "".join(flag for flag in on if flag != "s")
            dropped = "".join(flag for flag in off if flag != "s")
            if end == ")" and not kept and not dropped:
                return ""
            return f"(?{kept}{'-' if dropped else ''}{dropped}{end}"
        return "("

    def _escape(self) -> str:
        """Behind a backslash, outside of a class."""
        kind = self._pattern[self._at : self._at + 1]
        if kind in CLASSES:
            self._at += 1
            return self.class_text(CLASSES[kind])
        if kind in ("b", "B", "k") or (kind.isdecimal() and kind != "0"):
            self._at += 1
            return f"\\{kind}"
        if found := _PROPERTY.match(self._pattern, self._at):
            self._at = found.end()
            return self.property_text((), [f"\\{found[0]}"])
        code = self._escaped_char()
        return "\\" if code is None else self.char_text(code)

    def _escaped_char(self) -> int | None:
        """The character that an escape stands for; None at the end of the pattern."""
        if found := _HEX.match(self._pattern, self._at):
            self._at = found.end()
            code = int(next(filter(None, found.groups())), 16)
            if code > LAST:
                self._is_wrong = True
                return 0
            low = _HEX.match(self._pattern, self._at + 1) if self._pattern[self._at : self._at + 1] == "\\" else None
            if 0xD800 <= code < 0xDC00 and low and low[2] and 0xDC00 <= int(low[2], 16) < 0xE000:
                self._at = low.end()
                return 0x10000 + ((code - 0xD800) << 10) + int(low[2], 16) - 0xDC00
            return code
        char = self._pattern[self._at : self._at + 1]
        if not char:
            return None
        self._at += 1
        if char == "c" and (letter := self._pattern[self._at : self._at + 1]).isascii() and letter.isalpha():
            self._at += 1
            return ord(letter) % 32
        return _CONTROLS.get(char, ord(char))

    def _class(self) -> str:
        """Behind an opening bracket."""
        began = self._at
        negated = self._pattern[self._at : self._at + 1] == "^"
        self._at += negated
        found: list[tuple[int, int]] = []
        properties: list[str] = []
        while self._at < len(self._pattern) and self._pattern[self._at] != "]":
            if name := _PROPERTY.match(self._pattern, self._at + 1) if self._pattern[self._at] == "\\" else None:
                self._at = name.end()
                properties.append(f"\\{name[0]}")
                continue
            low = self._member()
            if isinstance(low, int) and _RANGE.match(self._pattern, self._at):
                before = self._at
                self._at += 1
                high = self._member()
                if isinstance(high, int):
                    self._is_wrong |= low > high
                    found.append((low, max(low, high)))
                    continue
                self._at = before
            found += [(low, low)] if isinstance(low, int) else low
        if self._at >= len(self._pattern):  # which nobody takes
            self._at = len(self._pattern)
            return f"[{self._pattern[began:]}"
        self._at += 1
        chars = ranges(found)
        if not properties:
            return self.class_text(without(chars) if negated else chars)
        return self.property_text(chars, properties, negated=negated)

    def _kept_escape(self) -> str:
        """Behind a backslash: the classes, and all else as it stands."""
        kind = self._pattern[self._at : self._at + 1]
        self._at += 1
        return self.class_text(CLASSES[kind]) if kind in CLASSES else f"\\{kind}"

    def _kept_class(self) -> str:
        """Behind an opening bracket: all but the escapes as it stands."""
        parts, depth = ["["], 1
        while self._at < len(self._pattern) and depth:
            char = self._pattern[self._at]
            self._at += 1
            if char == "\\":
                parts.append(self._kept_escape())
                continue
            parts.append(char)
            first = parts in (["[", "^"], ["[", "]"], ["[", "^", "]"])
            depth += 0 if first else {"[": 1, "]": -1}.get(char, 0)
        return "".join(parts)

    def _member(self) -> int | list[tuple[int, int]]:
        """A character of a class, or the ranges of an escape."""
        char = self._pattern[self._at]
        self._at += 1
        if char != "\\":
            return ord(char)
        kind = self._pattern[self._at : self._at + 1]
        if kind in CLASSES:
            self._at += 1
            return list(CLASSES[kind])
        if kind == "b":
            self._at += 1
            return 8
        code = self._escaped_char()
        return ord("\\") if code is None else code
