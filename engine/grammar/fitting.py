"""Makes the grammar of a constraint, and sees that the library takes it.

What the library refuses in a schema, or what cannot be written as a grammar, is named by keyword, though neither says
where it is. Of schemas that are not strict it is left out, as rewriting leaves out what it cannot follow itself: first
patterns, then the keyword that a search finds, then all complements, and at last everything but the outermost type.
"""

import re
import time
from collections.abc import Callable
from typing import Any

import llguidance

from engine.constraint import Constraint, Relaxed, SchemaSource
from engine.errors import RequestError
from engine.grammar.backend_llguidance import LlguidanceGrammar, compile_grammar
from engine.grammar.blame import blamed
from engine.grammar.grammar import GrammarError
from engine.grammar.schema.faults import Unfollowable
from engine.grammar.schema.prepare import UnplacedError
from engine.grammar.schema.relaxing import Degree, Relaxing
from engine.grammar.source import GrammarText, grammar_text, load_schema, schema_text, schemas_of

MAX_SEARCH_SECONDS = 1.0
"""Of the process's own time: from then on no single keyword is looked for."""
_UNSATISFIABLE = re.compile("accepts no value at all|allows no further token")
_OF_PATTERNS = re.compile("regex|pattern")
_OF_SIZE = re.compile("too large|too many|recursion limit|circular references")
"""What the library says of schemas that complements have made large; it says it of no single keyword."""
_PLACE = re.compile(r"\[(\d+)\]")


class Fitting:
    """One constraint, and what is left out of its schemas by now."""

    def __init__(
        self,
        tokenizer: llguidance.LLTokenizer,
        constraint: Constraint,
        probe: Callable[[LlguidanceGrammar], None],
        *,
        rough: bool = False,
    ) -> None:
        """`probe` raises `GrammarError` for a grammar that cannot be afforded.

        With `rough` only the outermost type is left of what is not strict.
        """
        self._tokenizer = tokenizer
        self._constraint = constraint
        self._probe = probe
        self._schemas = schemas_of(constraint)
        self._relaxings = [Relaxing(strict=one.strict, pattern_fault=self._pattern_fault) for one in self._schemas]
        self._deadline = time.process_time() + MAX_SEARCH_SECONDS
        if rough:
            self._coarsen(Degree.TYPE)

    def grammar(self) -> GrammarText:
        """A grammar that compiles. Raises `RequestError`."""
        while True:
            try:
                grammar = grammar_text(self._constraint, self._relaxings)
                self._check(grammar, self._constraint)
            except UnplacedError as error:
                self._mend(error)
            else:
                return grammar

    def _check(self, grammar: GrammarText, constraint: Constraint) -> None:
        """Raise `UnplacedError` for a grammar that the library refuses, or that cannot be afforded."""
        try:
            self._probe(compile_grammar(self._tokenizer, grammar.text, constraint))
            for text in grammar.costly:
                self._probe(compile_grammar(self._tokenizer, text, constraint, is_trial=True))
        except RequestError as error:
            raise UnplacedError(error.message, param=error.param) from None
        except GrammarError as error:
            raise UnplacedError(f"{constraint.param}: {error}", param=constraint.param) from None

    def relaxed(self) -> Relaxed | None:
        """What was left out, None if nothing was."""
        pointers = [
            f"{_pointer(one.param)}{pointer}"
            for one, relaxing in zip(self._schemas, self._relaxings, strict=True)
            for pointer in relaxing.pointers()
        ]
        return Relaxed.of(pointers) if pointers else None

    def _mend(self, error: RequestError) -> None:
        """Leave out what the library refused. Raises `RequestError`, with the place where there is one."""
        is_schema = self._constraint.kind == "json_schema"
        faults = [
            (one, relaxing, fault)
            for one, relaxing in zip(self._schemas, self._relaxings, strict=True)
            if (fault := error if is_schema else self._fault(one, relaxing)) is not None
        ]
        for one, relaxing, fault in faults:
            self._relax(one, relaxing, fault)
        if not faults and not self._coarsen():  # it is all of them together, or what stands around them
            raise error

    def _relax(self, one: SchemaSource, relaxing: Relaxing, fault: RequestError) -> None:
        if relaxing.strict or _UNSATISFIABLE.search(fault.message):
            keyword = self._blamed(one, relaxing, fault)
            if keyword is None:
                raise fault
            said = str(keyword).replace(f"{one.param}: ", "").replace(f"{one.param} ", "")
            raise RequestError(f"{one.param} {said}", param=one.param)
        large = _OF_SIZE.search(fault.message) and relaxing.degree < Degree.POSITIVE
        if large or (_OF_PATTERNS.search(fault.message) and relaxing.degree < Degree.PATTERNS):
            relaxing.coarsen(Degree.POSITIVE if large else Degree.PATTERNS)
            return
        found = self._blamed(one, relaxing, fault) if time.process_time() < self._deadline else None
        if (found is None or not relaxing.tell(found)) and not relaxing.coarsen():
            raise fault

    def _coarsen(self, least: Degree = Degree.POSITIVE) -> bool:
        """Whether any schema can be followed less far."""
        return any([relaxing.coarsen(least) for relaxing in self._relaxings])

    def _fault(
        self, one: SchemaSource, relaxing: Relaxing, schema: Any = None, part: Any = None, at: str = ""
    ) -> RequestError | None:
        """What the library says of one schema alone, or of a part of it."""
        alone = Constraint(kind="json_schema", source="", param=one.param)
        schema = load_schema(one.schema, one.param) if schema is None else schema
        try:
            self._check(schema_text(schema, one.param, part=part, at=at, relaxing=relaxing.again()), alone)
        except RequestError as error:
            return error
        return None

    def _blamed(self, one: SchemaSource, relaxing: Relaxing, fault: RequestError) -> Unfollowable | None:
        schema = load_schema(one.schema, one.param)

        def why(part: Any, at: str) -> str | None:
            found = self._fault(one, relaxing, schema, part, at)
            return None if found is None else found.message

        return blamed(schema, fault.message, why)

    def _pattern_fault(self, pattern: str) -> str | None:
        alone = SchemaSource(param="pattern", schema="")
        fault = self._fault(alone, Relaxing(), {"type": "string", "pattern": pattern})
        return None if fault is None else fault.message.removeprefix("pattern: ")


def _pointer(param: str) -> str:
    """A field of the request as a JSON pointer: `tools[0].function` is `/tools/0/function`."""
    return "/" + _PLACE.sub(r".\1", param).replace(".", "/")
