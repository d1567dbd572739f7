"""What a schema leaves open, as generation has to take it: every answer still validates, and no model runs away.

Small models that may add members of any name add them until the limit. So where `properties` are said and nothing of
others, there are no others; `additionalProperties: true`, or a schema in its place, keeps an object open. A schema
without `type` means the one type that its keywords speak of: `properties` or `required` an object, `items` an array.

Schemas that hold for the same value are closed once, together. A member or an item of which several of them speak is
left as it is, for closed one by one they would exclude each other's members; and so is what a `$ref` with other
keywords beside it points to.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from engine.grammar.schema.implied import implied_types
from engine.grammar.schema.values import ALL_TYPES, Schema, type_of

OTHERS = ("patternProperties", "additionalProperties")
"""Keywords that say something of members that are not listed."""
ITEMS = ("items", "prefixItems")
_OPEN = "open"
"""Behind the name of a definition that is left as it is."""

Subject = tuple[str, str]
"""What a schema says something of: `member` and a name, `others`, or `items`."""


@dataclass(frozen=True, slots=True)
class _Around:
    """What the schemas that hold for the same value besides the one at hand say."""

    names: frozenset[str] = frozenset()
    subjects: frozenset[Subject] = frozenset()
    lists_names: bool = False
    is_open: bool = False
    """One of them speaks of other members."""
    is_typed: bool = False
    has_fewest: int = 0
    """Members there must be."""


_NOTHING = _Around()
_OPENED = frozenset({"properties", *OTHERS, *ITEMS, "allOf", "anyOf", "$ref"})
"""Keywords without which a schema that says its type is left as it is."""


class Closing:
    """Closes one rewritten document. `definitions` are its references' targets, by name."""

    def __init__(self, definitions: dict[str, Schema]) -> None:
        self._definitions = definitions
        self._done: dict[str, Schema] = {}
        self._waiting: list[str] = []
        self._closed_before: dict[tuple[int, _Around], tuple[Schema, Schema]] = {}
        self._left_before: dict[int, tuple[Schema, Schema]] = {}
        """Both by the identity of a schema, which is kept with them: what was rewritten shares much."""

    def document(self, root: Schema) -> tuple[Schema, dict[str, Schema]]:
        """The closed root, and the definitions that it needs."""
        root = self._closed(root, _NOTHING)
        while self._waiting:
            name = self._waiting.pop()
            plain = name.removesuffix(_OPEN)
            schema = self._definitions[plain]
            self._done[name] = self._left(schema) if name != plain else self._closed(schema, _NOTHING)
        return root, self._done

    def _closed(self, schema: Schema, around: _Around) -> Schema:
        """The schema, closed unless what stands around it forbids."""
        if not isinstance(schema, dict):
            return schema
        if around == _NOTHING and _OPENED.isdisjoint(schema) and ("type" in schema or "enum" in schema):
            return schema
        known = self._closed_before.get((id(schema), around))
        if known is None:
            known = self._closed_before[id(schema), around] = schema, self._close(schema, around)
        return known[1]

    def _close(self, schema: dict[str, Any], around: _Around) -> Schema:
        if schema.keys() == {"$ref"} and around == _NOTHING:
            return {"$ref": self._reference(schema["$ref"], "")}
        here = self._with(around, schema, choices="allOf" in schema)
        elsewhere = around.subjects | self._below(schema)
        if "anyOf" in schema and "allOf" not in schema:
            return self._chosen(schema, around, here, elsewhere)
        return self._without_others(self._inner(self._typed(schema, around), elsewhere), here)

    def _chosen(
        self, schema: dict[str, Any], around: _Around, here: _Around, elsewhere: frozenset[Subject]
    ) -> dict[str, Any]:
        """Each choice closed, with what stands beside the choices."""
        typed = self._typed(schema, around)
        beside = replace(here, is_typed=here.is_typed or typed.keys() != schema.keys())
        out = self._inner(_without_choices(typed), elsewhere)
        choices = [choice for choice in schema["anyOf"] if not self._needs_others(choice, beside)]
        return {**out, "anyOf": [self._closed(choice, beside) for choice in choices or schema["anyOf"]]}

    def _needs_others(self, choice: Schema, beside: _Around) -> bool:
        """Whether a choice has too few listed members left, where all that are listed would be enough."""
        if not isinstance(choice, dict) or not beside.lists_names or beside.is_open:
            return False
        absent = {name for name, part in choice.get("properties", {}).items() if part is False}
        return len(beside.names - absent) < beside.has_fewest <= len(beside.names)

    def _without_others(self, schema: dict[str, Any], here: _Around) -> Schema:
        properties: dict[str, Schema] = {name: {} for name in sorted(here.names)} | schema.get("properties", {})
        possible = sum(part is not False for part in properties.values())
        if not here.lists_names or here.is_open or possible < here.has_fewest:
            return schema
        ordered = {name: properties.pop(name) for name in schema.get("properties", {})}
        return {**schema, "properties": {**ordered, **properties}, "additionalProperties": False}

    def _inner(self, schema: dict[str, Any], elsewhere: frozenset[Subject]) -> dict[str, Any]:
        """The schema as open as it was, its members and items closed unless they are spoken of elsewhere too."""
        out: dict[str, Any] = dict(schema)
        for name in ("allOf", "$ref"):
            if name in out:
                out[name] = self._left({name: out[name]})[name]

        def child(part: Schema, subject: Subject) -> Schema:
            return self._left(part) if subject in elsewhere else self._closed(part, _NOTHING)

        if "properties" in out:
            out["properties"] = {key: child(part, ("member", key)) for key, part in out["properties"].items()}
        if "patternProperties" in out:
            others = out["patternProperties"].items()
            out["patternProperties"] = {key: child(part, ("others", "")) for key, part in others}
        if "additionalProperties" in out:
            out["additionalProperties"] = child(out["additionalProperties"], ("others", ""))
        if "items" in out:
            out["items"] = child(out["items"], ("items", ""))
        if "prefixItems" in out:
            out["prefixItems"] = [child(part, ("items", "")) for part in out["prefixItems"]]
        return out

    def _left(self, schema: Any) -> Any:
        """The schema as it is, but for its references, which are to definitions that are left too."""
        if isinstance(schema, list):
            return [self._left(part) for part in schema]
        if not isinstance(schema, dict) or _OPENED.isdisjoint(schema):
            return schema
        known = self._left_before.get(id(schema))
        if known is None:
            known = self._left_before[id(schema)] = schema, self._leave(schema)
        return known[1]

    def _leave(self, schema: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in schema.items():
            if name == "$ref":
                out[name] = self._reference(value, _OPEN)
            elif name in ("properties", "patternProperties"):
                out[name] = {key: self._left(part) for key, part in value.items()}
            else:
                out[name] = self._left(value) if name in (*ITEMS, "additionalProperties", "allOf", "anyOf") else value
        return out

    def _reference(self, reference: str, kind: str) -> str:
        """A definition as it is needed, to be made if it is not yet."""
        name = reference.rpartition("/")[2] + kind
        if name not in self._done:
            self._done[name] = True
            self._waiting.append(name)
        return f"#/$defs/{name}"

    def _with(self, around: _Around, schema: dict[str, Any], *, choices: bool) -> _Around:
        """What is around, and what the schema itself says, with that of its choices if they cannot be told apart."""
        names, lists, is_open, fewest = set(around.names), around.lists_names, around.is_open, 0
        typed = around.is_typed or self._says_type(schema if choices else _without_choices(schema))
        subjects = set(around.subjects)
        for part in self._in_place(schema, set(), choices=choices):
            names |= {*part.get("properties", {}), *part.get("required", ())}
            members = part.get("properties")
            lists = lists or (members is not None and (not members or any(m is not False for m in members.values())))
            is_open = is_open or any(name in part for name in OTHERS)
            fewest = max(fewest, part.get("minProperties", 0))
            subjects |= _subjects(part)
        return _Around(frozenset(names), frozenset(subjects), lists, is_open, typed, max(fewest, around.has_fewest))

    def _below(self, schema: dict[str, Any]) -> frozenset[Subject]:
        """What the choices, parts and reference of a schema speak of."""
        inside = {name: schema[name] for name in ("allOf", "anyOf", "$ref") if name in schema}
        parts = list(self._in_place(inside, set(), choices=True))
        return frozenset(subject for part in parts for subject in _subjects(part))

    def _in_place(self, schema: Schema, seen: set[str], *, choices: bool) -> Iterator[dict[str, Any]]:
        """All schemas that hold for the same value."""
        if not isinstance(schema, dict):
            return
        yield schema
        for part in [*schema.get("allOf", ()), *(schema.get("anyOf", ()) if choices else ())]:
            yield from self._in_place(part, seen, choices=True)
        if "$ref" in schema and schema["$ref"] not in seen:
            seen.add(schema["$ref"])
            yield from self._in_place(self._definitions[schema["$ref"].rpartition("/")[2]], seen, choices=True)

    def _typed(self, schema: dict[str, Any], around: _Around) -> dict[str, Any]:
        """With the types that the keywords speak of, its own and those of its parts, where none is said."""
        if around.is_typed or schema.keys() & {"type", "enum"} or self._says_type(schema):
            return schema
        parts = self._in_place(_without_choices(schema), set(), choices=True)
        types = frozenset(kind for part in parts if not part.keys() & {"type", "enum"} for kind in implied_types(part))
        return {"type": types, **schema} if types else schema

    def _says_type(self, schema: dict[str, Any]) -> bool:
        return self._types(schema, frozenset()) != ALL_TYPES

    def _types(self, schema: Schema, seen: frozenset[str]) -> frozenset[str]:
        """Types outside of which a rewritten schema accepts nothing."""
        if isinstance(schema, bool):
            return ALL_TYPES if schema else frozenset()
        found: frozenset[str] = schema.get("type", ALL_TYPES)
        if "enum" in schema:
            found &= {type_of(value) for value in schema["enum"]}
        for part in schema.get("allOf", ()):
            found &= self._types(part, seen)
        if "anyOf" in schema:
            found &= frozenset().union(*(self._types(part, seen) for part in schema["anyOf"]))
        if "$ref" in schema and schema["$ref"] not in seen:
            target = self._definitions[schema["$ref"].rpartition("/")[2]]
            found &= self._types(target, seen | {schema["$ref"]})
        return found


def _without_choices(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "anyOf"}


def _subjects(schema: dict[str, Any]) -> set[Subject]:
    """What one schema says more of than that it is there or not."""
    found = {("member", name) for name, part in schema.get("properties", {}).items() if isinstance(part, dict) and part}
    if any(name in schema for name in OTHERS):
        found.add(("others", ""))
    if any(name in schema for name in ITEMS):
        found.add(("items", ""))
    return found
