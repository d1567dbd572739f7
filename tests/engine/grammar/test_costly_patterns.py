"""Patterns that cost much to follow: they are followed wherever they stand, or refused before an answer begins."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from engine.errors import RequestError
from tests.engine.grammar.test_relaxing import answer
from tests.engine.grammar.walks import Walker
from tests.places import SHARED

PASSWORDS = [
    r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)(?=.*[^\da-zA-Z]).{8,}$",
    r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)(?=.*[@$!%*?&])[A-Za-z\d@$!%*?&]{8,}$",
    r"^(?=.*?[A-Z])(?=.*?[a-z])(?=.*?[0-9])(?=.*?[#?!@$%^&*-]).{8,}$",
    r"^(?=.*[a-z])(?=.*[A-Z])(?=.*\d)(?=.*\W).+$",
    r"^(?=.*[a-z])(?=.*[A-Z])(?=.*[0-9])(?=.*[!@#\$%\^&\*])(?=.{8,})",
]


def within(**fields: Any) -> dict[str, Any]:
    """A schema that has a string behind another member."""
    return {"type": "object", "properties": {"a": {"const": 1}, "p": {"type": "string", **fields}},
            "required": ["a", "p"]}  # fmt: skip


@pytest.fixture(scope="module")
def walker(smollm2_dir: Path) -> Walker:
    if (SHARED / "tokenizers").is_dir():
        return Walker(SHARED / "tokenizers" / "qwen2_5", 152064, 151645)
    return Walker(smollm2_dir, 49152, 2)


@pytest.mark.parametrize("pattern", PASSWORDS)
@pytest.mark.parametrize("lengths", [{}, {"minLength": 8, "maxLength": 20}, {"maxLength": 64}, {"maxLength": 4096}])
def test_a_password_is_followed_within_an_object(walker: Walker, pattern: str, lengths: dict[str, int]) -> None:
    for seed in range(2):
        text = walker.walk("json_schema", json.dumps(within(pattern=pattern, **lengths)), seed, limit=40)
        if text is not None:  # or it was on its way, and no mask was too much
            found = json.loads(text)["p"]
            assert re.search(pattern, found, re.ASCII) and len(found) <= lengths.get("maxLength", len(found))


@pytest.mark.parametrize("pattern", [r"\bfoo\b", r"(?=.*a)(?=.*b)x", r"foo(?!bar)"])
def test_what_looks_around_may_be_long(walker: Walker, pattern: str) -> None:
    walker.walk("json_schema", json.dumps(within(pattern=pattern, maxLength=100_000)), 0, limit=20)


TANGLED = {
    "many and a length": (
        "^" + "".join(f"(?=.*[{chr(97 + n)}-{chr(105 + n)}].*{n})" for n in range(10)) + ".*$",
        {"maxLength": 64},
    ),
    "many": ("^" + "".join(f"(?=.*[{chr(97 + n)}-{chr(105 + n)}].*{n})" for n in range(10)) + ".*$", {}),
}


@pytest.mark.parametrize("kind", TANGLED)
def test_a_pattern_that_is_too_complex_is_so_before_an_answer_begins(kind: str) -> None:
    pattern, lengths = TANGLED[kind]
    refused = answer(within(pattern=pattern, **lengths), strict=True)
    assert refused.error is not None and "at /properties/p/pattern: 'pattern' cannot be followed:" in refused.error
    assert refused.error.count("followed") == 1
    relaxed = answer(within(pattern=pattern, **lengths))
    assert relaxed.error is None and relaxed.relaxed is not None
    assert relaxed.relaxed.pointers == ("/schema/properties/p/pattern",)


def test_strings_that_only_others_than_simple_characters_satisfy_are_written_with_them(walker: Walker) -> None:
    pattern = r"^(?=.*é)(?=.*[a-z])(?=.*\d).+$"
    text = walker.walk("json_schema", json.dumps(within(pattern=pattern, maxLength=20)), 1, limit=60)
    assert text is None or "é" in json.loads(text)["p"]
    with pytest.raises(RequestError, match="no value at all"):
        walker.walk("json_schema", json.dumps(within(pattern=pattern, maxLength=2)), 1)
