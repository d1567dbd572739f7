"""Schemas said in the keywords that llguidance follows exactly.

`not` is pushed down to where a keyword has a complement that can be said (De Morgan); `oneOf` becomes `anyOf` where no
value is accepted twice, else each choice without the others; conditions and dependencies become choices. What cannot
be said exactly is refused by its keyword and JSON pointer, or left out where the schema is not strict (`Relaxing`).
"""

from typing import Any

from engine.grammar.language.expression import LanguageError
from engine.grammar.language.items import looks_around
from engine.grammar.schema.algebra import Algebra
from engine.grammar.schema.closing import Closing
from engine.grammar.schema.complement import Complement
from engine.grammar.schema.counted import Counted
from engine.grammar.schema.document import Document
from engine.grammar.schema.evaluate import Evaluator
from engine.grammar.schema.evaluated import said_items, said_members
from engine.grammar.schema.faults import Budget, Unfollowable, escape
from engine.grammar.schema.formats import said_format
from engine.grammar.schema.implied import asked_for, implied_types, traces, with_draft_3, with_spoken_names
from engine.grammar.schema.keyword_sets import (
    APPLIED,
    BESIDE_REFERENCES,
    CHOOSING,
    COPIED,
    COUNTED,
    IN_PLACE,
    JOINED,
    REFUSED,
)
from engine.grammar.schema.members import apart
from engine.grammar.schema.names import Names
from engine.grammar.schema.overlap import Overlap
from engine.grammar.schema.references import References
from engine.grammar.schema.relaxing import Relaxing
from engine.grammar.schema.strings import Strings
from engine.grammar.schema.values import ALL_TYPES, Schema, type_of

_UNEVALUATED = {"unevaluatedProperties": said_members, "unevaluatedItems": said_items}


class Rewriter:
    """Rewrites one document."""

    def __init__(self, root: Schema, *, closes: bool = True, relaxing: Relaxing | None = None) -> None:
        """With `closes` what the schema leaves open is narrowed, as generation needs it (see `Closing`).

        `relaxing` says what is left out of the document, and is told of it; without one it is strict.
        """
        self._closes = closes
        self._relaxing = relaxing or Relaxing()
        self._budget = Budget()
        self._document = Document(root)
        self.strings = self._strings = Strings()
        """The languages of the document's patterns."""
        self._overlap = Overlap(self._document, self._strings, self._budget)
        self._references = References(self._document, self._budget, say=self.say, deny=self.deny)
        self._algebra = Algebra(self._budget, self._strings, self._types_behind)
        self._says = Counted(self._algebra, self._strings)
        self._evaluator = Evaluator(self._document, self._strings, self._budget)
        self._complement = Complement(
            self._algebra,
            self._strings,
            self._overlap,
            self._budget,
            say=self.say,
            deny=self.deny,
            deny_reference=lambda schema, at: self._references.denied(schema, at, self._complement.rival_names),
        )
        self._root = root
        self._names = Names(self._strings, self._algebra)
        self._is_in_full = False
        """Whether references are replaced by what they refer to."""
        self._bare: dict[frozenset[str], Schema] = {}
        """Schemas that say nothing but a type, each one object."""

    def result(self, part: Schema | None = None, at: str = "") -> tuple[Schema, dict[str, Schema]]:
        """The whole document, or the part of it at a pointer, rewritten, and what its references point to, by name.

        Raises `SchemaFault`.
        """
        given = self._root if part is None else part
        root = self.say(given, at)
        if self._closes and isinstance(given, dict) and not given.keys() & IN_PLACE:
            meant = implied_types(given)
            if meant and not meant & self._algebra.types(root):
                return False, {}  # nothing of the kind that it speaks of
        definitions: dict[str, Schema] = {}
        while self._references.pending:
            name, schema, at, holds = self._references.pending.pop()
            definitions[name] = self.say(schema, at) if holds else self._deny_target(schema, at)
        return Closing(definitions).document(root) if self._closes else (root, definitions)

    def say(self, schema: Schema, at: str) -> Schema:
        """The schema in other words."""
        if isinstance(schema, bool):
            return schema
        with self._budget:
            followed = self._relaxing.followed(schema, at) if isinstance(schema, dict) else schema
            keys = self._document.keywords(followed, at)
            while True:
                try:
                    return self._said(schema, keys, at)
                except Unfollowable as fault:
                    keys = self._relaxing.relaxed(keys, fault, at)

    def _said(self, schema: dict[str, Any], keys: dict[str, Any], at: str) -> Schema:
        if keys.keys() == {"type"}:
            return self._bare.setdefault(keys["type"], keys)
        for name in REFUSED:
            if name in keys:
                raise Unfollowable(at, name, "is not supported")
        listed = self._listed(schema, keys, at)
        if listed is not None:
            return listed
        parts = [self._plain(keys, at)]
        if self._closes:
            parts[0] = with_spoken_names(schema, with_draft_3(schema, parts[0] | traces(schema, parts[0])))
        if JOINED.isdisjoint(keys):
            return parts[0]
        if not APPLIED.isdisjoint(keys):
            parts += self._applied(schema, keys, at)
        if not COUNTED.isdisjoint(keys):
            parts += self._counted(schema, keys, parts[0], at)
        return self._names.listed(self._algebra.all_of(*parts))

    def _listed(self, schema: dict[str, Any], keys: dict[str, Any], at: str) -> Schema | None:
        """Where the schema, or one of `allOf`, lists values: those that all of it accepts. None if none does."""
        if not ("enum" in schema or "const" in schema or "allOf" in keys):
            return None
        if "enum" in keys and CHOOSING.isdisjoint(keys):
            found = [value for value in keys["enum"] if type_of(value) in keys.get("type", ALL_TYPES)]
            return {"enum": found} if found else False
        lists = [part.get("enum", [part["const"]] if "const" in part else None)
                 for part in [schema, *keys.get("allOf", ())] if isinstance(part, dict)]  # fmt: skip
        values = next((values for values in lists if values is not None), None)
        if values is None:
            return None
        try:
            found = [value for value in values if self._evaluator.accepts(schema, value, at)]
        except (Unfollowable, LanguageError):
            return None
        return {"enum": found} if found else False

    def deny(self, schema: Schema, at: str) -> Schema:
        """What accepts exactly the values that the schema does not."""
        if isinstance(schema, bool):
            return not schema
        with self._budget:
            keys = self._document.keywords(schema, at)
            self._relaxing.check_complement(schema, at)
            return self._complement.of(schema, keys, at)

    def _deny_target(self, schema: Schema, at: str) -> Schema:
        """The complement of what a `$ref` of some complement points to."""
        try:
            return self.deny(schema, at)
        except Unfollowable as fault:
            self._relaxing.note(fault)
            return True

    def _in_full(self, schema: Schema, at: str) -> Schema:
        """The schema in other words, with what it refers to in the place of references."""
        outer, self._is_in_full = self._is_in_full, True
        try:
            return self.say(schema, at)
        finally:
            self._is_in_full = outer

    def _types_behind(self, reference: str) -> frozenset[str]:
        targets = self._references.targets
        return self._overlap.types(targets[reference]) if reference in targets else ALL_TYPES

    def _plain(self, keys: dict[str, Any], at: str) -> dict[str, Any]:
        out = {name: value for name, value in keys.items() if name in COPIED}
        for name in ("properties", "patternProperties"):
            if name in keys:
                below = f"{at}/{name}"
                said = {key: self.say(part, f"{below}/{escape(key)}") for key, part in keys[name].items()}
                out[name] = said if name == "properties" else {self._pattern(key, at, name): said[key] for key in said}
        if "pattern" in out:
            out["pattern"] = self._pattern(out["pattern"], at, "pattern")
        if len(out.get("patternProperties", ())) > 1:
            out["patternProperties"] = apart(out["patternProperties"], self._strings, self._algebra.all_of, at)
        for name in ("additionalProperties", "items"):
            if name in keys:
                out[name] = self.say(keys[name], f"{at}/{name}")
        if "prefixItems" in keys:
            out["prefixItems"] = [self.say(part, f"{at}/prefixItems/{n}") for n, part in enumerate(keys["prefixItems"])]
        return out

    def _pattern(self, pattern: str, at: str, keyword: str) -> str:
        """A pattern as it is followed. One that looks around stays as it is until it is written (`Strings.all_of`)."""
        try:
            parts = self._strings.all_of(pattern)
        except LanguageError as error:
            raise Unfollowable(at, keyword, f"cannot be followed: {error}") from None
        self._relaxing.check_pattern(pattern, at, keyword)
        return pattern if looks_around(pattern) else parts[0]

    def _applied(self, schema: dict[str, Any], keys: dict[str, Any], at: str) -> list[Schema]:
        """The keywords whose schemas are about the value itself."""
        parts: list[Schema] = []
        if "$ref" in keys:
            alone = not (self._is_in_full or keys.keys() & BESIDE_REFERENCES)
            references = self._references
            parts.append(references.refer(schema, at, holds=True) if alone else references.in_full(schema, at))
        parts += [self.say(part, f"{at}/allOf/{number}") for number, part in enumerate(keys.get("allOf", ()))]
        if "anyOf" in keys:
            choices = [self.say(part, f"{at}/anyOf/{number}") for number, part in enumerate(keys["anyOf"])]
            parts.append(self._algebra.any_of(choices))
        if "oneOf" in keys:
            parts.append(self._one_of(keys["oneOf"], at))
        if "not" in keys:
            with self._relaxing.around(at, "not"):
                parts.append(self.deny(keys["not"], f"{at}/not"))
        if "if" in keys:
            with self._relaxing.around(at, "if"):
                parts.append(self._condition(keys, at))
        for name, part in keys.get("dependentSchemas", {}).items():
            parts.append(self._says.dependent(name, self.say(part, f"{at}/dependentSchemas/{escape(name)}")))
        if "format" in keys:
            parts.append(said_format(keys["format"], at))
        return parts

    def _counted(self, schema: dict[str, Any], keys: dict[str, Any], plain: dict[str, Any], at: str) -> list[Schema]:
        """The keywords about how many, or what kind of, members there are."""
        parts: list[Schema] = []
        if "propertyNames" in keys:
            parts.append(self._says.property_names(self._in_full(keys["propertyNames"], f"{at}/propertyNames"), at))
        if "contains" in keys:
            parts.append(self._says.contains(self.say(keys["contains"], f"{at}/contains"), keys, at))
        for name in _UNEVALUATED.keys() & keys.keys():
            said = self.say(keys[name], f"{at}/{name}")
            parts.append({} if said in (True, {}) else _UNEVALUATED[name](schema, said, at, self._document))
        return parts + ([self._says.distinct(plain, keys)] if keys.get("uniqueItems") is True else [])

    def _one_of(self, choices: list[Schema], at: str) -> Schema:
        said = [self.say(part, f"{at}/oneOf/{number}") for number, part in enumerate(choices)]
        if self._relaxing.leaves_out(at, "oneOf"):
            return self._algebra.any_of(said)
        found = []
        for number, rivals in self._complement.rivals(choices, said).items():
            self._complement.rival_names = self._overlap.names(choices[number])
            try:
                with self._relaxing.around(at, "oneOf"):
                    denied = [self.deny(choices[rival], f"{at}/oneOf/{rival}") for rival in rivals]
                    mine = self._references.whole(choices[number], f"{at}/oneOf/{number}") if rivals else said[number]
            finally:
                self._complement.rival_names = frozenset()
            found.append(self._algebra.all_of(mine, *denied))
        return self._algebra.any_of(found)

    def _condition(self, keys: dict[str, Any], at: str) -> Schema:
        """`if`: the value is not so, or `then`; it is so, or `else`."""
        parts = []
        if "then" in keys:
            then = self._algebra.all_of(_members(keys["if"]), self.say(keys["then"], f"{at}/then"))
            parts.append(self._algebra.any_of([self.deny(keys["if"], f"{at}/if"), then]))
        if "else" in keys:
            parts.append(self._algebra.any_of([self.say(keys["if"], f"{at}/if"), self.say(keys["else"], f"{at}/else")]))
        return self._algebra.all_of(*parts)


def _members(condition: Schema) -> Schema:
    """The members that a condition is about, which come before those that are asked for if it holds."""
    properties: dict[str, Schema] = {name: {} for name in asked_for({"if": condition})}
    return {"properties": properties} if properties else {}
