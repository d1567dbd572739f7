"""What may stand at a place of a JSON text: terminals, arrays and objects, whose parts are such places again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.grammar.language.expression import LanguageError
from engine.grammar.language.writing import in_slashes
from engine.grammar.schema.faults import Budget, Unplaced
from engine.grammar.schema.names import MAX_WORDS
from engine.grammar.schema.strings import Strings, overlapping
from engine.grammar.schema.values import Schema
from engine.grammar.writing.alike import Alike
from engine.grammar.writing.kinds import ArrayPart, Numbers, ObjectPart, Reader, Texts
from engine.grammar.writing.terminals import Terminals
from engine.grammar.writing.texts import is_text

MAX_ASKED = 8
"""Sets of strings at one place, up to which each is asked whether it is empty; of more, one will not be."""
NamesTaken = Literal["listed", "endless", "few"]
"""Which names objects take: those listed; of some kind, of which there are always more; of kinds that may run out."""
ItemsTaken = Literal["any", "distinct", "few"]
"""Whether there are arrays whose items have to differ: none; some; some within which strings may run out."""


@dataclass(eq=False, slots=True)
class Node:
    """One place: a rule of the grammar."""

    name: str
    terminals: list[str] = field(default_factory=list)
    arrays: list["ArrayShape"] = field(default_factory=list)
    objects: list["ObjectShape"] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    """null, true and false, as far as they may stand there."""
    texts: list[Texts] = field(default_factory=list)
    numbers: list[Numbers] = field(default_factory=list)
    ends: bool = False
    """Whether there is a finite text for it, as far as that is known."""

    def has_end(self) -> bool:
        """Whether there is one, of places that have one."""
        return (
            bool(self.terminals)
            or any(shape.ends() for shape in self.arrays)
            or any(shape.ends() for shape in self.objects)
        )


@dataclass(slots=True)
class ArrayShape:
    """An array: so many items, the first of which are each of a kind of their own."""

    prefix: list[Node]
    items: Node
    least: int
    most: int | None
    differs: bool = False
    """No item may be equal to another."""
    distinct: int | None = None
    """Of items that differ, how many there may be."""

    def longest(self) -> int | None:
        """How many items there may be, for each of which there is a finite text."""
        limits = [at for at, node in enumerate(self.prefix) if not node.ends]
        limits += [] if self.items.ends else [len(self.prefix)]
        limits += [limit for limit in (self.most, self.distinct) if limit is not None]
        return min(limits, default=None)

    def ends(self) -> bool:
        """Whether there is a finite one."""
        longest = self.longest()
        return longest is None or self.least <= longest


@dataclass(frozen=True, slots=True)
class Member:
    """A member that is declared."""

    name: str
    node: Node
    is_required: bool


@dataclass(frozen=True, slots=True)
class FreeMembers:
    """Members of all names that a terminal stands for."""

    terminal: str
    node: Node
    is_endless: bool
    """Whether there are more of these names, whatever they begin with."""


@dataclass(slots=True)
class ObjectShape:
    """An object: its declared members in their order, then others, so many in all."""

    members: list[Member]
    free: list[FreeMembers]
    least: int
    most: int | None

    def ends(self) -> bool:
        """Whether there is a finite one."""
        required = [member for member in self.members if member.is_required]
        if not all(member.node.ends for member in required):
            return False
        possible = sum(member.node.ends for member in self.members)
        endless = any(free.node.ends for free in self.free)
        return (self.most is None or len(required) <= self.most) and (
            (endless or self.least <= possible) and (self.most is None or self.least <= self.most)
        )


class Nodes:
    """The places of one document, each made once from the schemas that hold there."""

    def __init__(self, reader: Reader, strings: Strings, terminals: Terminals, budget: Budget) -> None:
        self.names: NamesTaken = "listed"
        self._reader = reader
        self._strings = strings
        self._terminals = terminals
        self._budget = budget
        self._known: dict[frozenset[int], Node] = {}
        self._alike = Alike()
        self._places: dict[tuple[int, ...], tuple[Sequence[Schema], Node]] = {}
        """By the identities of schemas as they come, which is faster; these are kept with them."""
        self._waiting: list[tuple[Node, list[Schema]]] = []
        self.all: list[Node] = []

    def made(self, root: Schema) -> Node:
        """The place of the whole document, with all below it. Raises `SchemaFault`."""
        node = self._node([root])
        while self._waiting:
            self._budget.spend()
            self._fill(*self._waiting.pop())
        self.settle()
        return node

    def settle(self) -> None:
        """Find the places for which there is a finite text, and leave out what has none."""
        for node in self.all:
            node.ends = False
        grew = True
        while grew:
            grew = False
            for node in reversed(self.all):  # the parts of a place are made after it
                if not node.ends and node.has_end():
                    node.ends = grew = True
        for node in self.all:
            node.arrays = [shape for shape in node.arrays if shape.ends()]
            node.objects = [shape for shape in node.objects if shape.ends()]

    def _node(self, schemas: Sequence[Schema]) -> Node:
        """The place where all of the schemas hold."""
        place = tuple(map(id, schemas))
        known = self._places.get(place)
        if known is None:
            known = self._places[place] = schemas, self._place(schemas)
        return known[1]

    def _place(self, schemas: Sequence[Schema]) -> Node:
        found: dict[int, Schema] = {}
        for schema in map(self._reader.target, schemas):
            if schema is False:
                found = {id(False): False}
                break
            if schema is not True and schema != {}:
                schema = self._alike.of(schema)
                found[id(schema)] = schema
        key = frozenset(found)
        if key not in self._known:
            node = self._known[key] = Node(f"n{len(self.all)}")
            self.all.append(node)
            self._waiting.append((node, list(found.values())))
        return self._known[key]

    def _fill(self, node: Node, schemas: list[Schema]) -> None:
        kinds = self._reader.joined(schemas)
        node.words = [word for word in ("null", "true", "false") if word in kinds]
        if node.words:
            node.terminals.append(self._terminals.define(in_slashes("|".join(node.words))))
        node.texts, node.numbers = kinds.get("string", []), kinds.get("number", [])
        alone = len(node.texts) <= MAX_ASKED
        found = [terminal for texts in node.texts for terminal in self._terminals.texts(texts, alone=alone)]
        counted = map(self._terminals.numbers, node.numbers)
        found += [terminal for terminal in counted if terminal is not None]
        node.terminals += dict.fromkeys(found)
        node.arrays = [self._array(parts) for parts in kinds.get("array", ())]
        node.objects = [self._object(parts) for parts in kinds.get("object", ())]

    def _array(self, parts: tuple[ArrayPart, ...]) -> ArrayShape:
        size = max((len(part.prefix) for part in parts), default=0)
        most = min((part.most for part in parts if part.most is not None), default=None)
        if most is not None:
            size = min(size, most)
        prefix = [
            self._node([part.prefix[at] if at < len(part.prefix) else part.items for part in parts])
            for at in range(size)
        ]
        least = max((part.least for part in parts), default=0)
        differs = any(part.differs for part in parts) and (most is None or most > 1)
        return ArrayShape(prefix, self._node([part.items for part in parts]), least, most, differs)

    def _object(self, parts: tuple[ObjectPart, ...]) -> ObjectShape:
        required = {name: None for part in parts for name in part.required}
        names = dict.fromkeys([*(name for part in parts for name in part.properties), *required])
        said = self._said(parts, names)
        members = []
        for name in names:
            self._budget.spend()
            node = self._node(said[name] if is_text(name) else [False])
            members.append(Member(name, node, name in required))
        most = min((part.most for part in parts if part.most is not None), default=None)
        least = max((part.least for part in parts), default=0)
        free = self._free(parts, members)
        return ObjectShape(members, free, least, most)

    def _said(self, parts: tuple[ObjectPart, ...], names: dict[str, None]) -> dict[str, list[Schema]]:
        """What the parts say of members of these names."""
        if any(part.patterns for part in parts):
            return {name: [schema for part in parts for schema in self._of_name(part, name)] for name in names}
        said: dict[str, list[Schema]] = {name: [] for name in names}
        for part in parts:
            for name, schema in part.properties.items():
                said[name].append(schema)
            if part.additional is not True:
                for name in names.keys() - part.properties.keys():
                    said[name].append(part.additional)
        return said

    def _of_name(self, part: ObjectPart, name: str) -> list[Schema]:
        found = [part.properties[name]] if name in part.properties else []
        try:
            found += [schema for pattern, schema in part.patterns.items() if self._strings.finds(pattern, name)]
        except LanguageError as error:
            raise Unplaced(f"a pattern of names cannot be followed: {error}") from None
        return found or [part.additional]

    def _free(self, parts: tuple[ObjectPart, ...], members: list[Member]) -> list[FreeMembers]:
        """Members that are not declared; where few names are left for them they are added to those that are."""
        patterns = list(dict.fromkeys(pattern for part in parts for pattern in part.patterns))
        names = [member.name for member in members]
        free: list[FreeMembers] = []
        try:
            for cell, mine in self._cells(patterns):
                said = [schema for part in parts for schema in _of_cell(part, mine)]
                if all(schema is not False for schema in said):
                    but = [name for name in names if self._strings.finds(cell, name)]
                    self._add(members, free, cell, but, [], self._node(said))
            others = [part.additional for part in parts]
            if all(schema is not False for schema in others):
                self._add(members, free, None, names, patterns, self._node(others))
        except LanguageError as error:
            raise Unplaced(f"a pattern of names cannot be followed: {error}") from None
        return free

    def _add(self, members: list[Member], free: list[FreeMembers], pattern: str | None, but: list[str],
             not_found: list[str], node: Node) -> None:  # fmt: skip
        """Add the names in which a pattern is found (None: any) and others are not, but for some that are declared."""
        found = [] if pattern is None else [pattern]
        if found or not_found:
            try:
                words = self._strings.words(found, not_found, MAX_WORDS + len(but))
            except LanguageError:
                words = None
            left = None if words is None else [word for word in words if word not in but]
            if left is not None and len(left) <= MAX_WORDS:
                members += [Member(word, node, False) for word in left]
                return
        is_endless = not (found or not_found) or self._strings.is_endless(found, not_found)
        self.names = "few" if self.names == "few" or not is_endless else "endless"
        free.append(FreeMembers(self._terminals.names(pattern, but, not_found), node, is_endless))

    def _cells(self, patterns: list[str]) -> list[tuple[str, list[str]]]:
        if len(patterns) > 1 and overlapping(self._strings, dict.fromkeys(patterns)):
            cells = self._strings.cells(patterns)
            return [(cell, [patterns[at] for at in positions]) for cell, positions in cells]
        return [(pattern, [pattern]) for pattern in patterns]


def _of_cell(part: ObjectPart, patterns: list[str]) -> list[Any]:
    return [part.patterns[pattern] for pattern in patterns if pattern in part.patterns] or [part.additional]
