"""Strings as they are spelled in JSON text, each in one way: escapes stand only where JSON needs them, the short ones
where there are any (RFC 8259, section 7). So names are equal exactly where their spellings are."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache

from engine.grammar.anchors import alternatives
from engine.grammar.language.classes import written_char, written_class
from engine.grammar.language.ecma import Translation
from engine.grammar.language.expression import LanguageError
from engine.grammar.language.remembered import remembered
from engine.grammar.language.sets import ALL, Ranges, common, holds, ranges, without

_SPELL = json.JSONEncoder(ensure_ascii=False).encode
_SURROGATE = re.compile("[\ud800-\udfff]")
_SHORT = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", 34: '"', 92: "\\\\"}
_ESCAPED = [*range(32), 34, 92]
_PLAIN = without(ranges((code, code) for code in _ESCAPED))
_FLAGS = re.compile(r"\(\?([a-z]+)\)")
_ATOMS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
CHAR = r'(?:[^"\\\x00-\x1F]|\\(?:["\\bfnrt]|u00(?:0[0-7bef]|1[0-9a-f])))'
"""Any one character."""
STRING = f'"{CHAR}*"'
_SIMPLE = ranges([(32, 33), (35, 91), (93, 126)])
SIMPLE_CHAR = r"[ !#-\[\]-~]"
"""Any one character of printable ASCII but the two that are escaped."""
SIMPLE_STRING = f'"{SIMPLE_CHAR}*"'
_WITH_CONTROLS = frozenset({"c", "cc", "any", "ascii", "assigned", "control", "other", "cntrl", "common", "zyyy"})
_WITH_QUOTES = frozenset({"p", "po", "any", "ascii", "assigned", "punct", "punctuation", "otherpunctuation", "common",
                          "zyyy", "graph", "print", "patternsyntax"})  # fmt: skip


def spelled(text: str) -> str:
    """The JSON text of a string."""
    return _SPELL(text)


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it, which it cannot where it has half of a surrogate pair."""
    return text.isascii() or not _SURROGATE.search(text)


@remembered
def pattern_text(pattern: str) -> str:
    """An expression of the JSON strings in which the pattern is found. Raises `LanguageError`."""
    return _text(pattern, is_simple=False)


@remembered
def simple_pattern_text(pattern: str) -> str:
    """One of those among them that are made of `SIMPLE_CHAR`. Raises `LanguageError`."""
    return _text(pattern, is_simple=True)


def _text(pattern: str, *, is_simple: bool) -> str:
    text = _Spelling(pattern, is_simple=is_simple).text()
    char = SIMPLE_CHAR if is_simple else CHAR
    flags = _FLAGS.match(text)
    choices = alternatives(text[flags.end() :] if flags else text)
    if not _is_balanced(text):
        raise LanguageError("its brackets are unbalanced")
    return f'"(?:{"|".join(_searched(choice, flags[1] if flags else "", char) for choice in choices)})"'


def length_text(least: int, most: int | None, *, is_simple: bool = False) -> str:
    """An expression of the JSON strings of so many characters."""
    return f'"{SIMPLE_CHAR if is_simple else CHAR}{{{least},{"" if most is None else most}}}"'


def _is_balanced(pattern: str) -> bool:
    depth = 0
    for char in _ATOMS.sub("", pattern):
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth < 0:
            return False
    return depth == 0


def _searched(pattern: str, flags: str, char: str) -> str:
    begins = pattern.startswith("^")
    bare = pattern.removeprefix("^")
    escapes = len(bare[:-1]) - len(bare[:-1].rstrip("\\"))
    ends = bare.endswith("$") and escapes % 2 == 0
    bare = bare[:-1] if ends else bare
    return f"{'' if begins else char + '*'}(?{flags}:{bare}){'' if ends else char + '*'}"


class _Spelling(Translation):
    """A pattern for the spelling of what the pattern itself is for."""

    def __init__(self, pattern: str, *, is_simple: bool) -> None:
        super().__init__(pattern)
        self._is_simple = is_simple
        self._has_flags = "(?i" in pattern or "i:" in pattern

    def class_text(self, chars: Ranges) -> str:
        """A character that is spelled as it is, or one of those with an escape."""
        return written_class(common(chars, _SIMPLE)) if self._is_simple else _class(chars, self._has_flags)

    def char_text(self, code: int) -> str:
        is_written = holds(_SIMPLE, code) if self._is_simple else code not in _ESCAPED
        return written_char(code) if is_written else self.class_text(((code, code),))

    def property_text(self, members: Ranges, properties: Sequence[str], *, negated: bool = False) -> str:
        """By name where it is known to hold for nothing that JSON escapes, as it is of most categories and scripts."""
        names = {name[2:].strip("{}").rpartition("=")[2].replace("_", "").lower() for name in properties}
        is_plain = not (names & (_WITH_CONTROLS | _WITH_QUOTES) or any(name[1] == "P" for name in properties))
        if not is_plain or negated or any(holds(members, code) for code in _ESCAPED):
            return self.spelled_out(members, properties, negated=negated)
        return f'[{super().property_text(members, properties)}--["\\\\\\x00-\\x1F]]'


@lru_cache(maxsize=512)
def _class(chars: Ranges, has_flags: bool) -> str:
    if chars == ALL:
        return CHAR
    plain = without(ranges([*without(chars), *without(_PLAIN)]))
    escapes = [code for code in _ESCAPED if holds(chars, code)]
    if not escapes:
        return written_class(plain)
    listed = _escapes(escapes)
    # What is written in small letters is so under a flag for any case too.
    escaped = f"(?-i:{listed})" if has_flags else listed
    return f"(?:{written_class(plain)}|{escaped})" if plain else f"(?:{escaped})"


def _escapes(codes: list[int]) -> str:
    """An expression of the escapes of these characters."""
    choices = []
    if short := "".join(_SHORT[code] for code in codes if code in _SHORT):
        choices.append(f"[{short}]")
    for high in (0, 1):
        if low := "".join(f"{code % 16:x}" for code in codes if code not in _SHORT and code // 16 == high):
            choices.append(f"u00{high}[{low}]")
    return f"\\\\(?:{'|'.join(choices)})"
