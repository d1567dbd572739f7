"""What a constrained request asks for: frozen values, compiled by the rooms of `engine.grammar`."""

from dataclasses import dataclass
from typing import Literal

ConstraintKind = Literal["json_schema", "regex", "lark"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SchemaSource:
    """A JSON Schema inside a grammar, and the field of the request that an error blames."""

    param: str
    schema: str
    """JSON text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """What a generated text must match, as a whole and from its first token on.

    `lark` is the dialect of llguidance. Its rules `schema_0`, `schema_1`, ... are the entries of `schemas`: a JSON
    value that matches. Tokens that the tokenizer marks as special are never part of text; a grammar names them by
    id, `<[128010]>`. All other tokens are their bytes.
    """

    kind: ConstraintKind
    source: str
    """JSON text of a schema, a regular expression without its anchors, or a grammar with a rule `start`."""
    param: str = "response_format"
    """The field of the request that an error blames."""
    schemas: tuple[SchemaSource, ...] = ()
    opens: str = ""
    """Where there is free text around the values of `schemas`, a regular expression of what stands before each of them,
    in what Python's syntax and Rust's have in common. Empty: the text is JSON but for marks that are none."""
    after: str = ""
    """The constraint begins behind the first occurrence of this text; before it, text is free. Empty: at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningBudget:
    """How long a block of reasoning at the start of the answer may be."""

    max_tokens: int
    """After so many generated tokens without its end, the end is forced; 0 forces it at once."""
    end_token_ids: tuple[int, ...]
    """The tokens that are forced; they hold `end`."""
    end: str = "</think>"
    """The text that ends reasoning."""
