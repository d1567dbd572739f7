"""What a constrained request asks for: frozen values, compiled by the rooms of `engine.grammar`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engine.errors import RequestError

MAX_POINTERS = 100
MAX_POINTER_CHARS = 10_000
"""Of all pointers that go with one answer, together."""

MAX_SOURCE_CHARS = 2_000_000

ConstraintKind = Literal["json_schema", "regex", "lark"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaSource:
    """A JSON Schema inside a grammar, and the field of the request that an error blames."""

    param: str
    schema: str
    """JSON text."""
    strict: bool = True
    """Whether what cannot be followed is refused; else it is left out at its place, and named (`Relaxed`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternSource:
    """A regular expression inside a grammar, and the field of the request that an error blames."""

    param: str
    pattern: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """What a generated text must match, as a whole and from its first token on.

    `lark` is the dialect of llguidance. Its rules `schema_0`, `schema_1`, ... are the entries of `schemas`: a JSON
    value that matches. Its terminals `PATTERN_0`, ... are those of `patterns`: a text that matches as a whole. Tokens
    that the tokenizer marks as special are never part of text; a grammar names them by id, `<[128010]>`. All other
    tokens are their bytes.
    """

    kind: ConstraintKind
    source: str
    """JSON text of a schema, a regular expression, or a grammar with a rule `start`."""
    param: str = "response_format"
    """The field of the request that an error blames."""
    schemas: tuple[SchemaSource, ...] = ()
    patterns: tuple[PatternSource, ...] = ()
    strict: bool = True
    """Of a schema, as in `SchemaSource`."""
    opens: str = ""
    """Where there is free text around the values of `schemas`, a regular expression of what stands before each of them,
    in what Python's syntax and Rust's have in common. Empty: the text is JSON but for marks that are none."""
    after: str = ""
    """The constraint begins behind the first occurrence of this text; before it, text is free. Empty: at once."""

    @property
    def num_chars(self) -> int:
        """Characters of all its sources."""
        parts = [self.source, *(entry.schema for entry in self.schemas), *(entry.pattern for entry in self.patterns)]
        return sum(map(len, parts))

    def check_size(self) -> None:
        """Raise `RequestError` if its sources are longer than anything is made of."""
        if self.num_chars > MAX_SOURCE_CHARS:
            raise RequestError(
                f"{self.param} has {self.num_chars} characters, at most {MAX_SOURCE_CHARS} are allowed",
                param=self.param,
            )

    @property
    def may_relax(self) -> bool:
        """Whether something of it may be left out."""
        return not self.strict or any(not schema.strict for schema in self.schemas)


@dataclass(frozen=True, slots=True)
class Relaxed:
    """Keywords that are left out of schemas that are not strict."""

    count: int
    pointers: tuple[str, ...]
    """JSON pointers (RFC 6901) into the request, the first of them: within `MAX_POINTERS` and `MAX_POINTER_CHARS`."""

    @classmethod
    def of(cls, pointers: Sequence[str]) -> "Relaxed":
        """As many of the pointers as may be kept."""
        kept: list[str] = []
        room = MAX_POINTER_CHARS
        for pointer in pointers[:MAX_POINTERS]:
            room -= len(pointer)
            if room < 0:
                break
            kept.append(pointer)
        return cls(len(pointers), tuple(kept))


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningBudget:
    """How long a block of reasoning at the start of the answer may be."""

    max_tokens: int
    """After so many generated tokens without its end, the end is forced; 0 forces it at once."""
    end_token_ids: tuple[int, ...]
    """The tokens that are forced; they hold `end`."""
    end: str = "</think>"
    """The text that ends reasoning."""
