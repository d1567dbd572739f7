"""A rewritten schema, with all that it refers to, as the kinds of values it accepts: of each kind, one of several
sets, each of them said in one piece."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import product
from typing import Any

from engine.grammar.schema.faults import MAX_CHOICES, Beyond, Budget
from engine.grammar.schema.values import ALL_TYPES, Schema
from engine.grammar.writing.numbers import UNBOUNDED, Bounds

Kinds = dict[str, list[Any]]
"""By kind (null, true, false, string, number, array, object), the sets of values of that kind that are accepted."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Strings: those listed in `words` (None: any) in which all patterns are found, of a length."""

    words: tuple[str, ...] | None = None
    patterns: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None

    def meet(self, other: "Texts") -> "Texts":
        """What is in both."""
        words = other.words if self.words is None else self.words
        if self.words is not None and other.words is not None:
            words = tuple(word for word in self.words if word in set(other.words))
        most = min((most for most in (self.most, other.most) if most is not None), default=None)
        patterns = tuple(dict.fromkeys((*self.patterns, *other.patterns)))
        return Texts(words, patterns, max(self.least, other.least), most)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers: those listed in `values` (None: any) within bounds that are multiples of all of `multiples`."""

    values: tuple[int | Decimal, ...] | None = None
    bounds: Bounds = UNBOUNDED
    multiples: tuple[Fraction, ...] = ()
    types: frozenset[str] = frozenset({"integer", "fraction"})
    others: tuple[Fraction, ...] = ()
    """They are multiples of none of these."""

    def meet(self, other: "Numbers") -> "Numbers":
        """What is in both."""
        values = other.values if self.values is None else self.values
        if self.values is not None and other.values is not None:
            values = tuple(value for value in self.values if value in other.values)
        multiples = tuple(dict.fromkeys((*self.multiples, *other.multiples)))
        others = tuple(dict.fromkeys((*self.others, *other.others)))
        return Numbers(values, self.bounds.meet(other.bounds), multiples, self.types & other.types, others)


@dataclass(frozen=True, eq=False, slots=True)
class ArrayPart:
    """What one schema says of an array."""

    prefix: tuple[Schema, ...] = ()
    items: Schema = True
    least: int = 0
    most: int | None = None
    differs: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class ObjectPart:
    """What one schema says of an object."""

    properties: dict[str, Schema]
    patterns: dict[str, Schema]
    additional: Schema = True
    required: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None

    def contradicts(self, other: "ObjectPart") -> bool:
        """Whether one of the two asks for a member that the other forbids, so that there are no such objects."""
        return self._forbids(other.required) or other._forbids(self.required)

    def _forbids(self, names: tuple[str, ...]) -> bool:
        if not names:
            return False
        other = True if self.patterns else self.additional
        return any(self.properties.get(name, other) is False for name in names)


_ANY: Kinds = {"null": [None], "true": [None], "false": [None], "string": [Texts()], "number": [Numbers()],
               "array": [()], "object": [()]}  # fmt: skip
_EVERY: tuple[Any, ...] = ((), Texts(), Numbers())
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


class Reader:
    """Reads schemas of one document. `definitions` are its references' targets, by name."""

    def __init__(self, definitions: dict[str, Schema], budget: Budget) -> None:
        self._definitions = definitions
        self._budget = budget
        self._known: dict[int, Kinds] = {}
        self._entered: list[str] = []

    def target(self, schema: Schema) -> Schema:
        """What a schema that is only a reference stands for."""
        if isinstance(schema, bool) or "$ref" not in schema:
            return schema
        seen: set[str] = set()
        while isinstance(schema, dict) and schema.keys() == {"$ref"}:
            name = schema["$ref"].rpartition("/")[2]
            if name in seen:
                raise Beyond("", "'$ref' leads to itself")
            seen.add(name)
            schema = self._definitions[name]
        return schema

    def joined(self, schemas: Iterable[Schema]) -> Kinds:
        """What all of the schemas accept. Raises `SchemaFault`."""
        kinds = _ANY
        for schema in schemas:
            kinds = self._meet(kinds, self.kinds(schema))
        return kinds

    def kinds(self, schema: Schema) -> Kinds:
        """What a schema accepts. Raises `SchemaFault`."""
        if isinstance(schema, bool):
            return _ANY if schema else {}
        known = self._known.get(id(schema))
        if known is None:
            with self._budget:
                known = self._known[id(schema)] = self._read(schema)
        return known

    def _read(self, schema: dict[str, Any]) -> Kinds:
        # Members come in the order in which schemas speak of them: those of what is referred to first.
        kinds = self._referred(schema["$ref"].rpartition("/")[2]) if "$ref" in schema else _ANY
        for part in schema.get("allOf", ()):
            kinds = self._meet(kinds, self.kinds(part))
        if "enum" in schema:
            kinds = self._meet(kinds, _listed(schema["enum"]))
        if schema.keys() - {"enum", "anyOf", "allOf", "$ref"}:
            kinds = self._meet(kinds, _plain(schema))
        if "anyOf" in schema:
            kinds = self._meet(kinds, _united([self.kinds(choice) for choice in schema["anyOf"]]))
        return kinds

    def _referred(self, name: str) -> Kinds:
        if name in self._entered:
            raise Beyond("", "'$ref' leads to itself")
        self._entered.append(name)
        try:
            return self.kinds(self._definitions[name])
        finally:
            self._entered.pop()

    def _meet(self, one: Kinds, two: Kinds) -> Kinds:
        if one is _ANY or two is _ANY:
            return two if one is _ANY else one
        out: Kinds = {}
        for kind in one.keys() & two.keys():
            self._budget.spend(len(one[kind]) * len(two[kind]))
            pairs = list(product(one[kind], two[kind]))
            if kind == "object":
                pairs = [pair for pair in pairs if not _contradict(*pair)]
            out[kind] = _merged([_both(*pair) for pair in pairs])
        return out


def _united(choices: list[Kinds]) -> Kinds:
    kinds = dict.fromkeys(kind for choice in choices for kind in choice)
    return {kind: _merged([one for choice in choices for one in choice.get(kind, ())]) for kind in kinds}


def _contradict(one: tuple[ObjectPart, ...], two: tuple[ObjectPart, ...]) -> bool:
    return any(first.contradicts(second) for first, second in product(one, two) if first is not second)


def _both(one: Any, two: Any) -> Any:
    if isinstance(one, tuple):
        return tuple({id(part): part for part in (*one, *two)}.values())
    return None if one is None else one.meet(two)


def _merged(sets: list[Any]) -> list[Any]:
    """The sets, each once, or the one that holds all; words that are only listed in one. Raises `SchemaFault`."""
    distinct = list(dict.fromkeys(sets))
    for one in distinct:
        if one in _EVERY:
            return [one]
    words = [one for one in distinct if isinstance(one, Texts) and one == Texts(one.words)]
    if len(words) > 1:
        joined = Texts(tuple(dict.fromkeys(word for one in words for word in one.words or ())))
        distinct = [joined, *(one for one in distinct if one not in set(words))]
    if len(distinct) > MAX_CHOICES:
        raise Beyond("", f"it spells out into more than {MAX_CHOICES} choices")
    return distinct


def _listed(values: list[Any]) -> Kinds:
    found: dict[str, list[Any]] = {}
    for value in values:
        match value:
            case bool() | None:
                found[{None: "null", True: "true", False: "false"}[value]] = [None]
            case str():
                found.setdefault("string", []).append(value)
            case list():
                found.setdefault("array", []).append((_constant_array(value),))
            case dict():
                found.setdefault("object", []).append((_constant_object(value),))
            case _:
                found.setdefault("number", []).append(value)
    if "string" in found:
        found["string"] = [Texts(tuple(dict.fromkeys(found["string"])))]
    if "number" in found:
        found["number"] = [Numbers(tuple(found["number"]))]
    return found


def _plain(schema: dict[str, Any]) -> Kinds:
    """By the keywords that are about the value itself."""
    types = schema.get("type", ALL_TYPES)
    kinds: Kinds = {kind: [None] for kind in ("null",) if kind in types}
    if "boolean" in types:
        kinds |= {"true": [None], "false": [None]}
    if "string" in types:
        patterns = (schema["pattern"],) if "pattern" in schema else ()
        kinds["string"] = [Texts(None, patterns, schema.get("minLength", 0), schema.get("maxLength"))]
    if types & {"integer", "fraction"}:
        kinds["number"] = [_numbers(schema, types)]
    if "array" in types:
        part = ArrayPart(tuple(schema.get("prefixItems", ())), schema.get("items", True), schema.get("minItems", 0),
                         schema.get("maxItems"), schema.get("uniqueItems", False))  # fmt: skip
        says = schema.keys() & {"prefixItems", "items", "minItems", "maxItems", "uniqueItems"}
        kinds["array"] = [(part,) if says else ()]
    if "object" in types:
        members = ObjectPart(
            schema.get("properties", {}), schema.get("patternProperties", {}), schema.get("additionalProperties", True),
            tuple(schema.get("required", ())), schema.get("minProperties", 0), schema.get("maxProperties"),
        )  # fmt: skip
        says = schema.keys() & {"properties", "patternProperties", "additionalProperties", "required",
                                "minProperties", "maxProperties"}  # fmt: skip
        kinds["object"] = [(members,) if says else ()]
    return kinds


def _numbers(schema: dict[str, Any], types: frozenset[str]) -> Numbers:
    bounds = UNBOUNDED
    for name in _BOUNDS:
        if name in schema:
            value, excluded = Fraction(schema[name]), name.startswith("exclusive")
            is_low = name in ("minimum", "exclusiveMinimum")
            mine = Bounds(low=value, low_excluded=excluded) if is_low else Bounds(high=value, high_excluded=excluded)
            bounds = bounds.meet(mine)
    multiples = (Fraction(schema["multipleOf"]),) if "multipleOf" in schema else ()
    others = tuple(Fraction(step) for step in schema.get("notMultipleOf", ()))
    return Numbers(None, bounds, multiples, types & {"integer", "fraction"}, others)


def _constant_array(values: list[Any]) -> ArrayPart:
    return ArrayPart(tuple({"enum": [value]} for value in values), False, len(values), len(values))


def _constant_object(values: dict[str, Any]) -> ObjectPart:
    return ObjectPart({name: {"enum": [value]} for name, value in values.items()}, {}, False, tuple(values))
