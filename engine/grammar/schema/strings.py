"""Sets of strings that schemas speak of, by pattern, as languages: complements, overlaps, membership."""

import re
from collections.abc import Iterable
from typing import Any

from engine.grammar.language.classes import ANY_CHAR
from engine.grammar.language.ecma import translated
from engine.grammar.language.expression import LanguageError, Languages
from engine.grammar.language.items import looks_around
from engine.grammar.language.listing import words
from engine.grammar.language.node import Node
from engine.grammar.language.patterns import Reader
from engine.grammar.language.searched import fulfilling
from engine.grammar.language.sets import ALL
from engine.grammar.language.writing import write, written_parts
from engine.grammar.schema.values import ALL_TYPES, Schema, quote

_ESCAPES = re.compile(r"\\.|\[(?:[^\]\\]|\\.)*\]", re.DOTALL)
_ENDS_OF_CHOICES = re.compile(r"^\^|\$$")
_LONG_COUNT = re.compile(r"\{(?:\d+,)?\d{2,}\}")
MAX_LEAST = 10_000
"""Longest length that texts are asked for whether some have it."""
MAX_NAME_STATES = 40
"""Of the automaton of names that is looked through for places where they run out."""


class Strings:
    """Languages of the patterns of one document. Everything raises `LanguageError` where it is out of its depth."""

    def __init__(self) -> None:
        self._languages = Languages()
        self._reader = Reader(self._languages)
        self._known: dict[str, list[str]] = {}
        self._given: dict[str, str] = {}
        """By what was made of a pattern, the pattern."""
        self._words: dict[tuple[int, int], list[str] | None] = {}
        self._endless: dict[int, bool] = {}
        """Both by the identity of an expression."""
        self._others: dict[str, tuple[str, ...]] = {}

    def others(self, words: Iterable[str]) -> str:
        """A pattern of all strings but these, which is not read again: of that there may be much."""
        words = tuple(dict.fromkeys(words))
        pattern = f"^(?!(?:{'|'.join(map(quote, words))})$)"
        if pattern not in self._others:
            self._others[pattern] = words
            self._reader.learn(pattern, self._languages.negation(self._listed(words)))
        return pattern

    def but_for(self, pattern: str) -> tuple[str, ...] | None:
        """The strings that a pattern leaves out, if it is one of `others`."""
        return self._others.get(pattern)

    def complement(self, pattern: str) -> str:
        """A pattern of all strings in which this one is not found."""
        return self._write(self._languages.negation(self._reader.read(pattern)))

    def plain(self, pattern: str) -> str:
        """The pattern as llguidance takes it best.

        It knows anchors only at the ends, no lookaround, and long counts in what is searched for cost it more than a
        step may.
        """
        if pattern in self._others:
            return pattern
        pattern = translated(pattern)
        if looks_around(pattern):
            return self._write(self._reader.read(pattern))
        bare = _ESCAPES.sub("x", pattern)
        inside = _ENDS_OF_CHOICES.sub("", bare)
        searched = not (bare.startswith("^") and bare.endswith("$"))
        if "^" not in inside and "$" not in inside and not (searched and _LONG_COUNT.search(bare)):
            return pattern
        try:
            return self._write(self._reader.read(pattern))
        except LanguageError:
            return pattern

    def all_of(self, pattern: str) -> list[str]:
        """Patterns as llguidance takes them that together say what this one does; several where it looks around."""
        if pattern not in self._known:
            if looks_around(pattern):
                parts = written_parts(self._languages, self._reader.read(pattern))
            else:
                parts = [self.plain(pattern)]
            self._known[pattern] = parts
            for part in parts:
                self._known.setdefault(part, [part])
            if len(parts) == 1:
                self._given.setdefault(parts[0], pattern)
        return self._known[pattern]

    def fulfilling(self, pattern: str) -> str | None:
        """A text behind which a pattern, or what `all_of` made of it, is found; None where none is seen at once."""
        return None if pattern in self._others else fulfilling(self._given.get(pattern, pattern))

    def disjoint(self, one: str, two: str) -> bool:
        """Whether no string matches both; False where that is not known."""
        try:
            return self._languages.is_empty(self._languages.both(self._reader.read(one), self._reader.read(two)))
        except LanguageError:
            return False

    def finds(self, pattern: str, text: str) -> bool:
        """Whether the pattern is found in the text."""
        node = self._reader.read(pattern)
        for char in text:
            node = self._languages.derivative(node, ord(char))
        return node.nullable

    def cells(self, patterns: list[str]) -> list[tuple[str, list[int]]]:
        """Disjoint patterns that cover the same strings, each with the positions of those it is part of."""
        make = self._languages
        cells: list[tuple[Node, list[int]]] = []
        for position, pattern in enumerate(patterns):
            mine = self._reader.read(pattern)
            others = make.negation(mine)
            split: list[tuple[Node, list[int]]] = []
            for node, members in cells:
                split += [(make.both(node, mine), [*members, position]), (make.both(node, others), members)]
            rest = make.both(mine, *(make.negation(node) for node, _ in cells))
            cells = [cell for cell in [*split, (rest, [position])] if not make.is_empty(cell[0])]
        return [(self._write(node), members) for node, members in cells]

    def is_empty(self, patterns: Iterable[str], least: int, most: int | None) -> bool:
        """Whether no string of such a length matches all patterns; False where that is not known."""
        make = self._languages
        try:
            node = make.both(*map(self._reader.read, patterns))
            if not least and most is None:
                return make.is_empty(node)
            shortest = make.shortest(node)
            if shortest is None or (most is not None and shortest > most):
                return True
            if least <= shortest or least > MAX_LEAST:
                return False
            return make.is_empty(make.both(make.repeat(make.chars(ALL), least, most), node))
        except LanguageError:
            return False

    def is_endless(self, found: Iterable[str], not_found: Iterable[str]) -> bool:
        """Whether, wherever such a string has come to, no end of others begin as it does; False if that is not known.

        Such a string is one in which the first patterns are found and the others are not.
        """
        try:
            node = self._between(found, not_found)
        except LanguageError:
            return False
        if id(node) not in self._endless:
            self._endless[id(node)] = self._goes_on(node)
        return self._endless[id(node)]

    def _goes_on(self, node: Node) -> bool:
        try:
            return self._languages.automaton(node, MAX_NAME_STATES).is_endless
        except LanguageError:
            return False

    def words(self, found: Iterable[str], not_found: Iterable[str], most: int) -> list[str] | None:
        """All strings in which these patterns are found and those are not, in order; None if there are more than that.

        Raises `LanguageError`.
        """
        node = self._between(found, not_found)
        key = (id(node), most)
        if key not in self._words:
            self._words[key] = words(self._languages, node, most)
        return self._words[key]

    def listed(self, patterns: Iterable[str], least: int, most: int | None, limit: int) -> list[str] | None:
        """All strings of such a length in which the patterns are found; None if there are more than `limit`.

        Raises `LanguageError`.
        """
        make = self._languages
        parts = [*map(self._reader.read, patterns), make.repeat(make.chars(ALL), least, most)]
        return words(make, make.both(*parts), limit)

    def _between(self, found: Iterable[str], not_found: Iterable[str]) -> Node:
        make = self._languages
        return make.both(
            *map(self._reader.read, found), *(make.negation(self._reader.read(pattern)) for pattern in not_found)
        )

    def of_schema(self, schema: dict[str, Any]) -> str:
        """A pattern of the strings that a rewritten schema without references accepts."""
        if schema.keys() == {"type", "pattern"}:
            return self.plain(schema["pattern"])
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if schema.keys() <= {"type", "minLength", "maxLength"}:
            return f"^{ANY_CHAR}{{{low},{'' if high is None else high}}}$"
        node = self._of_schema(schema)
        parts = written_parts(self._languages, node)
        pattern = parts[0] if len(parts) == 1 else f"^{''.join(f'(?={part})' for part in parts)}"
        self._known[pattern] = parts
        self._reader.learn(pattern, node)
        return pattern

    def _of_schema(self, schema: Schema) -> Node:
        """The language of the strings that a rewritten schema accepts, of which only these keywords speak."""
        make = self._languages
        if isinstance(schema, bool):
            return make.letters if schema else make.none
        if "$ref" in schema:
            raise LanguageError("it refers to itself")
        if "string" not in schema.get("type", ALL_TYPES):
            return make.none
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if low > MAX_LEAST:
            raise LanguageError(f"strings of more than {MAX_LEAST} characters are asked for")
        parts = [self._reader.read(schema["pattern"])] if "pattern" in schema else []
        if "enum" in schema:
            parts.append(self._listed(value for value in schema["enum"] if isinstance(value, str)))
        if low or high is not None:
            parts.append(make.repeat(make.chars(ALL), low, high))
        if "anyOf" in schema:
            parts.append(make.either(*map(self._of_schema, schema["anyOf"])))
        return make.both(make.letters, *parts, *map(self._of_schema, schema.get("allOf", ())))

    def _listed(self, words: Iterable[str]) -> Node:
        """The language of these texts, of which those that begin alike are read together; they may be long."""
        make = self._languages
        tree: dict[str, Any] = {}
        for text in words:
            branch = tree
            for char in text:
                branch = branch.setdefault(char, {})
            branch[""] = {}
        made: dict[int, Node] = {}
        stack = [(tree, False)]
        while stack:
            branch, is_ready = stack.pop()
            if not is_ready:
                stack += [(branch, True), *((child, False) for char, child in branch.items() if char)]
                continue
            ends = [make.empty] if "" in branch else []
            following = ((ord(char), made[id(child)]) for char, child in branch.items() if char)
            made[id(branch)] = make.either(
                *ends, *(make.cat(make.chars(((code, code),)), rest) for code, rest in following)
            )
        return made[id(tree)]

    def _write(self, node: Node) -> str:
        pattern = write(self._languages.automaton(node))
        self._reader.learn(pattern, node)
        self._known[pattern] = [pattern]
        return pattern


def overlapping(strings: Strings, patterns: dict[str, Schema]) -> bool:
    """Whether some name may match two of the patterns."""
    names = list(patterns)
    return any(not strings.disjoint(one, two) for at, one in enumerate(names) for two in names[at + 1 :])
