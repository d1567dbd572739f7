"""What a `$ref` becomes: a reference of ours, or what it points to, in full."""

from typing import Any

from engine.grammar.schema.document import Document
from engine.grammar.schema.faults import Budget, Unfollowable
from engine.grammar.schema.keyword_sets import BESIDE_REFERENCES
from engine.grammar.schema.values import Rewrite, Schema


class References:
    """References of one document. What their targets become, or the complements of these, `say` and `deny` tell."""

    def __init__(self, document: Document, budget: Budget, *, say: Rewrite, deny: Rewrite) -> None:
        self.pending: list[tuple[str, Schema, str, bool]] = []
        """References of ours that are not made yet: name, target, its pointer, and whether it holds or is denied."""
        self.targets: dict[str, Schema] = {}
        """What references of ours that are no complements point to."""
        self._document = document
        self._budget = budget
        self._say = say
        self._deny = deny
        self._names: dict[tuple[str, bool], str] = {}
        self._inlined: dict[str, Schema] = {}
        self._inlining: list[str] = []
        self._denied: dict[tuple[str, frozenset[str]], Schema] = {}
        self._denying: list[str] = []
        self._recursions = 0
        """How often a complement needed itself."""

    def refer(self, schema: dict[str, Any], at: str, *, holds: bool) -> Schema:
        """What an object's `$ref` points to, or its complement, as a reference of ours."""
        target, pointer = self._document.resolve(schema, at)
        self._check_end(target, pointer, at)
        key = (pointer, holds)
        if key not in self._names:
            name = self._names[key] = f"{'is' if holds else 'not'}{len(self._names)}"
            if holds:
                self.targets[f"#/$defs/{name}"] = target
            self.pending.append((name, target, pointer, holds))
        return {"$ref": f"#/$defs/{self._names[key]}"}

    def _check_end(self, target: Schema, pointer: str, at: str) -> None:
        """Raise `Unfollowable` where what the `$ref` of a schema points to is but a reference, and so on for ever."""
        seen: set[str] = set()
        while isinstance(target, dict) and "$ref" in target and not target.keys() & BESIDE_REFERENCES:
            if pointer in seen:
                raise Unfollowable(at, "$ref", "leads to itself, and to no schema")
            seen.add(pointer)
            target, pointer = self._document.resolve(target, pointer)

    def in_full(self, schema: dict[str, Any], at: str) -> Schema:
        """What a `$ref` points to, in full: llguidance joins no recursive reference with keywords beside it."""
        target, pointer = self._document.resolve(schema, at)
        if pointer in self._inlining:
            raise Unfollowable(at, "$ref", "leads to itself where it cannot be followed")
        if pointer not in self._inlined:
            self._inlining.append(pointer)
            try:
                with self._budget:
                    self._inlined[pointer] = self.whole(target, pointer)
            finally:
                self._inlining.pop()
        return self._inlined[pointer]

    def whole(self, schema: Schema, at: str) -> Schema:
        """The schema in other words, which are no reference."""
        is_reference = isinstance(schema, dict) and "$ref" in schema and not schema.keys() & BESIDE_REFERENCES
        return self.in_full(schema, at) if is_reference else self._say(schema, at)

    def denied(self, schema: dict[str, Any], at: str, rival_names: frozenset[str]) -> Schema:
        """The complement of what a `$ref` points to: in full, unless it is part of itself.

        `rival_names` are those that the complement depends on (`Complement.rival_names`).
        """
        target, pointer = self._document.resolve(schema, at)
        if pointer in self._denying:
            self._recursions += 1
            return self.refer(schema, at, holds=False)
        key = (pointer, rival_names)
        if key in self._denied:
            return self._denied[key]
        before = self._recursions
        self._denying.append(pointer)
        try:
            denied = self._deny(target, pointer)
        finally:
            self._denying.pop()
        if self._recursions == before:  # or it would say something of the place it was needed at
            self._denied[key] = denied
        return denied
