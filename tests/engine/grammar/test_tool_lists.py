"""Tool lists of agents and MCP servers, in the shapes that their generators give them, under real vocabularies.

The shapes are those of zod 3 and 4, schemars, pydantic, Go and hand-written schemas as public tools have them; names of
tools are theirs, descriptions ours.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from engine.constraint import Constraint
from engine.grammar.backend_llguidance import compile_grammar, make_tokenizer
from engine.grammar.source import grammar_text
from engine.grammar.vocabulary import Vocabulary
from server.markup.formats import HERMES
from server.markup.grammar import ToolSchema, free_calls, required_calls
from tests.engine.grammar.walks import Walker
from tests.places import SHARED

LISTS = {path.stem: path for path in sorted((Path(__file__).parent / "tool_lists").glob("*.json"))}
SIZES = {"qwen2_5": (152064, 151645), "llama3_1": (128256, 128009)}


def tools(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(LISTS[name].read_text(encoding="utf-8"))
    return found


def compiles(schema: Any, vocabulary: Any) -> None:
    constraint = Constraint(kind="json_schema", source=json.dumps(schema))
    compile_grammar(vocabulary, grammar_text(constraint).text, constraint)


@pytest.fixture(scope="module")
def walker(smollm2_dir: Path) -> Walker:
    return Walker(smollm2_dir, 49152, 2)


def test_each_tool_is_followed_without_a_keyword_left_out(walker: Walker) -> None:
    for name in LISTS:
        for tool in tools(name):
            compiles(tool["parameters"], walker.tokenizer)


@pytest.mark.parametrize("name", LISTS)
def test_walks_through_each_tool_are_valid(walker: Walker, name: str) -> None:
    ends, walks = 0, 0
    for tool in tools(name):
        validator = jsonschema.Draft202012Validator(tool["parameters"])
        for seed in range(3):
            walks += 1
            text = walker.walk("json_schema", json.dumps(tool["parameters"]), seed, limit=1000)
            if text is not None:
                validator.validate(json.loads(text))
                ends += 1
    assert ends > walks / 2  # the others go on within open objects and texts


@pytest.fixture(scope="module", params=SIZES)
def vocabulary(request: pytest.FixtureRequest) -> Any:
    size, eos = SIZES[request.param]
    return make_tokenizer(Vocabulary.load(SHARED / "tokenizers" / request.param, size=size, eos_token_ids=[eos]))


@pytest.mark.skipif(not (SHARED / "tokenizers").is_dir(), reason="needs ../shared/tokenizers")
@pytest.mark.parametrize("name", LISTS)
def test_a_list_compiles_as_one_grammar(name: str, vocabulary: Any) -> None:
    listed = [
        ToolSchema(name=tool["name"], schema=json.dumps(tool["parameters"]), param=f"tools[{number}]")
        for number, tool in enumerate(tools(name))
    ]
    for make in (required_calls, free_calls):
        constraint = make(HERMES, listed, {}, parallel=True)
        grammar = compile_grammar(vocabulary, grammar_text(constraint).text, constraint)
        assert not grammar.is_finished
