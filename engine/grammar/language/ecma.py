"""Patterns as ECMA-262 reads them, in words that mean the same to Rust's regex syntax and to Python's `re`.

JSON Schema's patterns are ECMA-262's (2020-12 core, section 6.4), and JavaScript and TypeScript are where most come
from. Digits and words are ASCII, `\\s` has U+FEFF and not U+0085, `.` no end of a line, and in a class only `\\`, `]`,
`^` and `-` are special. What both languages refuse, such as references to groups, is passed on as it is.
"""

import re
from collections.abc import Sequence

from engine.grammar.language.classes import (
    ANY_CHAR,
    CLASS,
    CLASSES,
    LINE_ENDS,
    PROPERTY,
    NoPatternError,
    class_members,
    escaped,
    in_text,
    read_class,
    written_char,
    written_class,
)
from engine.grammar.language.counts import MAX_POSITIONS, positions
from engine.grammar.language.expression import LanguageError
from engine.grammar.language.properties import property_chars
from engine.grammar.language.remembered import remembered
from engine.grammar.language.sets import Ranges, ranges, without

_COPIED = re.compile(r"[A-Za-z0-9_ ,:;=!@%<>'`|*+?^$]+|\{\d+(?:,\d*)?\}")
"""What stands in a pattern for itself, in every form of it, with the signs between."""
_COPIED_IN_LARK = re.compile(r"[^\\\[.()]+")
_LARK = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|#[^\n]*|/(?P<pattern>(?:\\.|[^/\\])+)/(?P<flags>[imslux]*)', re.DOTALL)
"""What a pattern is in Lark's notation, and what could look like one: strings and comments."""
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


class Translation:
    """One pass over one pattern."""

    def __init__(self, pattern: str, *, dot_is_any: bool = False, keeps_classes: bool = False) -> None:
        self._pattern = pattern
        self._at = 0
        self._keeps_classes = keeps_classes
        self._dot_is_any = [dot_is_any]
        """By group, whether `.` is any character there (the flag s)."""

    def text(self) -> str:
        """The whole pattern; as it came if it is none, to be refused by whoever compiles it."""
        parts = []
        try:
            while self._at < len(self._pattern):
                parts.append(self._next())
        except NoPatternError:
            return self._pattern
        return "".join(parts)

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
        return f"[{'^' if negated else ''}{class_members(in_text(members))}{''.join(properties)}]"

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
        if copied := (_COPIED_IN_LARK if self._keeps_classes else _COPIED).match(self._pattern, self._at):
            self._at = copied.end()
            return copied[0]
        char = self._pattern[self._at]
        self._at += 1
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
            case "{" | "}" | "]":
                return f"\\{char}"
        return self.char_text(ord(char))

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
        if found := PROPERTY.match(self._pattern, self._at):
            self._at = found.end()
            return self.property_text((), [f"\\{found[0]}"])
        if not kind:
            return "\\"
        code, self._at = escaped(self._pattern, self._at)
        return self.char_text(code)

    def _class(self) -> str:
        """Behind an opening bracket."""
        found = CLASS.match(self._pattern, self._at)
        if found is None:  # which nobody takes
            rest, self._at = self._pattern[self._at :], len(self._pattern)
            return f"[{rest}"
        self._at = found.end()
        read = read_class(found[1])
        if read.properties:
            return self.property_text(read.chars, read.properties, negated=read.negated)
        return self.class_text(without(read.chars) if read.negated else read.chars)

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
