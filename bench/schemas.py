"""Which JSON schemas are followed, and what they cost: `python -m bench.schemas DATA.jsonl.gz TOKENIZER_DIRECTORY`.

DATA holds one object a line: `name`, `schema`, and `tests`, each with `data` and `valid`. A schema counts as followed
if it compiles and accepts every valid instance, written on one line in the instance's own order of properties. Members
come in the schema's order, so an instance may be refused for its own; those are told apart.
Compiling is rewriting and making the grammar, with objects open where the schema leaves them open, for the instances;
"closed" is the same as the engine does it for answers. Masks are taken before every token of the valid instances, with
all that what has been written forbids. Times are those of the thread alone, which other work on the machine changes
little.
"""

import argparse
import gc
import gzip
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llguidance
import numpy as np

from engine.constraint import Constraint
from engine.errors import RequestError
from engine.grammar.backend_llguidance import LlguidanceGrammar, compile_grammar, make_tokenizer
from engine.grammar.grammar import Grammar, GrammarError
from engine.grammar.repeats import unrepeated
from engine.grammar.source import GrammarText, load_schema, schema_text
from engine.grammar.token_index import TokenIndex
from engine.grammar.vocabulary import Vocabulary
from server.benchmarks.record import circumstances, percentile, table, write_json

KEYWORDS = [
    "not",
    "oneOf",
    "anyOf",
    "allOf",
    "if",
    "dependencies",
    "contains",
    "uniqueItems",
    "format",
    "pattern",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "multipleOf",
    "$ref",
    "enum",
]


def keywords_of(schema: Any) -> Iterator[str]:
    """Every object key in a schema."""
    if isinstance(schema, dict):
        for name, part in schema.items():
            yield name
            if name not in ("enum", "const", "default", "examples"):
                yield from keywords_of(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from keywords_of(part)


class Bench:
    """Schemas one after the other, on one vocabulary."""

    def __init__(self, directory: Path) -> None:
        size = len(json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
        self.vocabulary = Vocabulary.load(directory, size=size + 512, eos_token_ids=[size])
        self._tokenizer = make_tokenizer(self.vocabulary)
        self._bytes = llguidance.LLTokenizer("byte")
        self._index = TokenIndex(self.vocabulary)
        self._byte_index = TokenIndex(Vocabulary([bytes([n]) for n in range(256)], special_ids=[], eos_token_ids=[]))
        self._byte_tokenizer = make_tokenizer(self._byte_index.vocabulary)
        self._row = np.zeros(-(-self.vocabulary.size // 32), dtype=np.int32)
        gc.freeze()
        gc.disable()
        self.compile_ms: list[float] = []
        self.closed_ms: list[float] = []
        self.refuse_ms: list[float] = []
        self.mask_ms: list[float] = []
        self.first_mask_ms: list[float] = []

    def outcome(self, case: dict[str, Any]) -> tuple[str, str]:
        """followed, refused, rejects a valid instance, or accepts an invalid one; and a reason."""
        constraint = Constraint(kind="json_schema", source=json.dumps(case["schema"]), param="schema")
        try:
            made_of, grammar = self._compiled(constraint, self.compile_ms, closes=False)
            self._compiled(constraint, self.closed_ms, closes=True)
            began = time.thread_time()
            grammar.fill_bitmask(self._row)
            self.first_mask_ms.append((time.thread_time() - began) * 1e3)
        except (RequestError, GrammarError) as error:
            return "refused", str(error)
        text = made_of.text
        plain = llguidance.LLMatcher(self._bytes, text, log_level=0)
        instances = [(test["valid"], json.dumps(test["data"], ensure_ascii=False)) for test in case["tests"]]
        by_bytes = compile_grammar(self._byte_tokenizer, text, constraint)
        followed = unrepeated(by_bytes, made_of.names, made_of.items, self._byte_index, "")
        taken = [_accepts(plain, text.encode()) and _follows(followed, text.encode()) for _, text in instances]
        wrong = [instance for instance, is_taken in zip(instances, taken, strict=True) if instance[0] != is_taken]
        if wrong:
            valid, instance = min(wrong)  # an invalid one that is accepted is worse
            if not valid:
                return "accepts an invalid instance", instance
            orders = all(_behind(plain, json.loads(text)) for _, text in wrong)
            return "wants another order" if orders else "rejects a valid instance", instance
        for _, instance in instances:
            try:
                self._masks(grammar, instance)
            except GrammarError as error:
                return "refused", f"while it is followed: {error}"
        return "followed", ""

    def _compiled(self, constraint: Constraint, times: list[float], *, closes: bool) -> tuple[GrammarText, Grammar]:
        gc.collect()  # as the process does that compiles, between its jobs
        began = time.thread_time()
        try:
            made_of = schema_text(load_schema(constraint.source, constraint.param), constraint.param, closes=closes)
            inner = compile_grammar(self._tokenizer, made_of.text, constraint)
            grammar = unrepeated(inner, made_of.names, made_of.items, self._index, "")
        except (RequestError, GrammarError):
            times = self.refuse_ms
            raise
        finally:
            times.append((time.thread_time() - began) * 1e3)
        return made_of, grammar

    def _masks(self, grammar: Grammar, instance: str) -> None:
        matcher = grammar.copy()
        for token_id in self.vocabulary.spelled(instance.encode()):
            began = time.thread_time()
            matcher.fill_bitmask(self._row)
            self.mask_ms.append((time.thread_time() - began) * 1e3)
            if not (self._row[token_id // 32] >> (token_id % 32)) & 1:
                return
            matcher.accept(token_id)


def _accepts(matcher: llguidance.LLMatcher, text: bytes) -> bool:
    copy = matcher.deep_copy()
    return bool(copy.try_consume_tokens(list(text)) == len(text) and copy.is_accepting())


def _follows(grammar: Grammar, text: bytes) -> bool:
    """Whether nothing is there twice that must not be, of a text that the grammar's library accepts."""
    if isinstance(grammar, LlguidanceGrammar):
        return True
    copy = grammar.copy()
    try:
        for byte in text:
            copy.accept(byte)
    except GrammarError:
        return False
    return True


def _behind(matcher: llguidance.LLMatcher, value: Any) -> llguidance.LLMatcher | None:
    """The state behind a value, each of its members as soon as it is taken without shutting others out."""
    if isinstance(value, dict):
        return _behind_members(matcher, value)
    if not isinstance(value, list) or not value:
        return _taken(matcher, json.dumps(value, ensure_ascii=False))
    after: llguidance.LLMatcher | None = matcher
    for number, item in enumerate(value):
        opened = after and _taken(after, ", " if number else "[")
        after = opened and _behind(opened, item)
    return after and _taken(after, "]")


def _behind_members(matcher: llguidance.LLMatcher, members: dict[str, Any]) -> llguidance.LLMatcher | None:
    left, opening, after = dict(members), "{", matcher
    while left:
        possible = {name: named for name in left if (named := _taken(after, _named(opening, name))) is not None}
        for name, named in possible.items():
            behind = _behind(named, left[name])
            others = possible.keys() - {name}
            if behind is not None and all(_taken(behind, _named(", ", other)) for other in others):
                after, opening = behind, ", "
                del left[name]
                break
        else:
            return None
    return _taken(after, "}" if members else "{}")


def _named(opening: str, name: str) -> str:
    return f"{opening}{json.dumps(name, ensure_ascii=False)}: "


def _taken(matcher: llguidance.LLMatcher, text: str) -> llguidance.LLMatcher | None:
    copy, data = matcher.deep_copy(), list(text.encode())
    return copy if copy.try_consume_tokens(data) == len(data) else None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    bench = Bench(options.tokenizer)
    outcomes: Counter[str] = Counter()
    by_keyword: dict[str, Counter[str]] = {name: Counter() for name in KEYWORDS}
    refused: dict[str, str] = {}
    with gzip.open(options.data, "rt", encoding="utf-8") as lines:
        for line in lines:
            case = json.loads(line)
            outcome, reason = bench.outcome(case)
            outcomes[outcome] += 1
            for name in {*keywords_of(case["schema"])} & by_keyword.keys():
                by_keyword[name][outcome] += 1
            if outcome != "followed":
                refused[case["name"]] = f"{outcome}: {reason[:160]}"
    kinds = ["followed", "wants another order", "rejects a valid instance", "refused", "accepts an invalid instance"]
    rows = [["all", *(str(outcomes[kind]) for kind in kinds)]]
    rows += [[name, *(str(counts[kind]) for kind in kinds)] for name, counts in by_keyword.items()]
    print(table(["keyword", *kinds], rows))
    times = {
        "compile": bench.compile_ms,
        "closed": bench.closed_ms,
        "refuse": bench.refuse_ms,
        "first mask": bench.first_mask_ms,
        "mask": bench.mask_ms,
    }
    summary = {
        name: {"count": len(values), **{f"p{at}": round(percentile(values, at), 4) for at in (50, 90, 99, 100)}}
        for name, values in times.items()
    }
    print(json.dumps(summary))
    if options.json:
        found = {"outcomes": outcomes, "by_keyword": by_keyword, "milliseconds": summary, "not_followed": refused}
        write_json(options.json, {**circumstances(), "vocabulary": bench.vocabulary.size, **found})


if __name__ == "__main__":
    main()
