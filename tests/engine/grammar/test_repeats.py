"""No object has a name twice, in whatever spelling, and no name leads where only a second one could be written."""

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.constraint import Constraint, SchemaSource
from engine.grammar.backend_llguidance import compile_grammar, make_tokenizer
from engine.grammar.grammar import Grammar
from engine.grammar.json_place import Place, Repeated
from engine.grammar.repeats import UnrepeatedGrammar, unrepeated
from engine.grammar.source import grammar_text
from engine.grammar.token_index import TokenIndex
from engine.grammar.vocabulary import Vocabulary
from tests.engine.grammar.walks import Walker

WORDS = [b'"a', b'a"', b'":', b'", "', b',"', b'{"a', b'ab"', b'"ab":', b'1,"a":', b'\\"', b'b"}', b"</call>"]
EOS = 256 + len(WORDS)
VOCABULARY = Vocabulary([*(bytes([byte]) for byte in range(256)), *WORDS, b""], special_ids=[EOS], eos_token_ids=[EOS])
TOKENIZER = make_tokenizer(VOCABULARY)
INDEX = TokenIndex(VOCABULARY)


def compiled(source: Any, **fields: Any) -> Grammar:
    kind = "json_schema" if isinstance(source, dict) else "lark"
    text = json.dumps(source) if isinstance(source, dict) else source
    constraint = Constraint(kind=kind, source=text, **fields)  # type: ignore[arg-type]
    grammar = grammar_text(constraint)
    inner = compile_grammar(TOKENIZER, grammar.text, constraint)
    return unrepeated(inner, grammar.names, grammar.items, INDEX, constraint.opens)


def allowed(grammar: Grammar) -> set[bytes]:
    row = np.zeros(-(-VOCABULARY.size // 32), dtype=np.int32)
    grammar.fill_bitmask(row)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    return {VOCABULARY.tokens[token_id] for token_id in np.flatnonzero(bits).tolist()}


def feed(grammar: Grammar, text: str) -> Grammar:
    for byte in text.encode():
        grammar.accept(byte)
    return grammar


OPEN = {"type": "object"}


def test_a_name_that_is_there_is_not_closed_again() -> None:
    grammar = feed(compiled(OPEN), '{"a": 1, "')
    assert {b"a", b"ab"} & allowed(grammar) == {b"a"} and b'a"' not in allowed(grammar)
    assert b'ab"' in allowed(grammar) and b'"' in allowed(grammar)  # the empty name
    feed(grammar, "a")
    assert not any(text.startswith(b'"') for text in allowed(grammar))
    assert {b"b", b'\\"'} <= allowed(grammar)


def test_tokens_that_hold_a_whole_name() -> None:
    grammar = feed(compiled(OPEN), '{"ab": 1, ')
    assert b'"ab":' not in allowed(grammar) and b'"a' in allowed(grammar)
    again = feed(compiled(OPEN), '{"a": ')
    assert b'1,"a":' not in allowed(again)
    assert b'1,"a":' in allowed(feed(compiled(OPEN), '{"b": '))


def test_each_object_has_names_of_its_own() -> None:
    inner = feed(compiled(OPEN), '{"a": {"')
    assert b'a"' in allowed(inner)
    assert b'a"' not in allowed(feed(inner, 'a": [{"a": "}"}]}, "'))


def test_other_spellings_of_a_declared_name_do_not_come() -> None:
    grammar = compiled({"type": "object", "properties": {"id": {"type": "integer"}}, "additionalProperties": True})
    assert allowed(feed(grammar, '{"id": 1, "\\u00')) == {b"0", b"1"}


def test_copies_go_their_own_way() -> None:
    one = feed(compiled(OPEN), '{"a": 1')
    two = one.copy()
    feed(one, ', "b": 1, "')
    feed(two, ', "c": 1, "')
    assert b'b"}' not in allowed(one) and b'ab"' in allowed(one)
    assert b'"' in allowed(feed(two, "b")) and b'"' not in allowed(feed(one, "b"))


def test_schemas_that_list_their_names_are_not_followed() -> None:
    assert not isinstance(
        compiled({"type": "object", "properties": {"a": OPEN | {"properties": {}}}}), UnrepeatedGrammar
    )
    assert isinstance(compiled(OPEN), UnrepeatedGrammar)


def test_in_free_text_only_values_are_followed() -> None:
    source = 'start: TEXT "<call>f: " schema_0 "</call>" TEXT\nTEXT: /[^<]*/'
    schemas = (SchemaSource(param="tools[0]", schema=json.dumps(OPEN)),)
    grammar = compiled(source, schemas=schemas, opens="<call>f: ")
    feed(grammar, 'He said "{"a": 1, "')
    assert b'a"' in allowed(grammar)
    feed(grammar, '<call>f: {"a": 1, "')
    assert b'a"' not in allowed(grammar)
    feed(grammar, 'b": {}}</call>{"a": 1, "')
    assert b'a"' in allowed(grammar)


NARROW: dict[str, Any] = {
    "short names": {"type": "object", "propertyNames": {"pattern": "^[a-j]{1,2}$"}, "minProperties": 30},
    "long names": {"type": "object",
                   "propertyNames": {"minLength": 4, "maxLength": 4, "pattern": "^(abc|[xy]{3})[0-9]$"},
                   "additionalProperties": {"type": "null"}, "minProperties": 12},
    "a branch that ends": {"type": "object", "patternProperties": {"^(a[01]|b[0-9]+)$": {"type": "null"}},
                           "additionalProperties": False, "minProperties": 5},
    "not too short": {"type": "object", "patternProperties": {"^..+$": False}, "additionalProperties": {"type": "null"},
                      "propertyNames": {"pattern": "^[ -~]*$"}, "minProperties": 20},
}  # fmt: skip


@pytest.mark.parametrize("case", NARROW)
def test_names_that_may_run_out(smollm2_dir: Path, case: str) -> None:
    walker = Walker(smollm2_dir, 49152, 2)
    validator = jsonschema.Draft202012Validator(NARROW[case])
    for seed in range(3):
        validator.validate(walker.value(NARROW[case], seed, limit=1500))


@given(st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)),
       st.integers(0, 2**32))  # fmt: skip
def test_places_do_not_depend_on_how_a_text_is_cut(value: Any, seed: int) -> None:
    text = json.dumps([value], ensure_ascii=False).encode("utf-8", "replace")
    cut = random.Random(seed)
    place: Place | Repeated = Place()
    while text and isinstance(place, Place):
        size = cut.randint(1, 5)
        place, text = place.read(text[:size]), text[size:]
    assert place == Place()
