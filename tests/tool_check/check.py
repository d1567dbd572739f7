"""Arguments and extractions by a real model, all of which must validate: `make tool-check`.

    python -m tests.tool_check.check GGUF [--data SCHEMAS.jsonl.gz] [--json FILE]

Starts the server on a file of weights and asks three times fifty things at temperature 1: with `tool_choice` required,
with auto, and for JSON that says again what a text of `name: value` lines says, after fifty schemas of DATA. The exit
code tells whether every call and every answer that was not cut off is valid by jsonschema. The file of weights meant is
Qwen2.5-Coder-1.5B-Instruct, which takes about ten minutes on two cores with AVX512-BF16, several times that without.
"""

import argparse
import asyncio
import gzip
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import openai

from server.benchmarks.record import circumstances, table, write_json
from tests.places import SHARED
from tests.serving import running_server, write_models
from tests.tool_check.tools import QUESTIONS, SCHEMAS, TOOLS

NAME = "checked"
AT_ONCE = 16
MAX_SCHEMA_CHARS = 1500
Result = tuple[str, str]
"""What came of one request (valid, none, length or invalid), and what is wrong."""


def main() -> int:
    """Ask, judge, and tell; the exit code."""
    parser = argparse.ArgumentParser(description="Check that what a real model answers is valid.")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "json-schemas.jsonl.gz")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    with serving(options.weights) as url:
        outcomes, faults = asyncio.run(ask_all(url, options.data))
    kinds = ["valid", "none", "length", "invalid"]
    print(table(["", *kinds], [[name, *(str(found[kind]) for kind in kinds)] for name, found in outcomes.items()]))
    print("\n".join(faults) or "everything that was not cut off is valid")
    if options.json:
        write_json(options.json, {**circumstances(), "weights": options.weights.name, "outcomes": outcomes})
    return 1 if faults else 0


async def ask_all(url: str, data: Path) -> tuple[dict[str, Counter[str]], list[str]]:
    """The outcomes of each kind of request, and what was wrong."""
    outcomes: dict[str, Counter[str]] = {}
    faults: list[str] = []
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=3600) as client:
        kinds: dict[str, list[Coroutine[Any, Any, Result]]] = {
            "required": [call(client, question, "required", seed) for seed, question in enumerate(QUESTIONS)],
            "auto": [call(client, question, "auto", seed) for seed, question in enumerate(QUESTIONS)],
            "extraction": [extract(client, case, seed) for seed, case in enumerate(schemas(data))],
        }
        for name, requests in kinds.items():
            began = time.monotonic()
            results = await in_turns(requests)
            outcomes[name] = Counter(result for result, _ in results)
            faults += [f"{name}: {fault}" for _, fault in results if fault]
            print(f"{name}: {len(results)} answers in {time.monotonic() - began:.0f} s", flush=True)
    return outcomes, faults


async def in_turns(requests: list[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results, with at most `AT_ONCE` requests under way."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(request: Coroutine[Any, Any, Result]) -> Result:
        async with gate:
            return await request

    return list(await asyncio.gather(*map(one, requests)))


async def call(client: openai.AsyncOpenAI, question: str, choice: Any, seed: int) -> Result:
    """Ask with tools; every call that is opened must be of a tool, with arguments that validate."""
    messages: list[Any] = [{"role": "user", "content": question}]
    answer = await client.chat.completions.create(
        model=NAME, messages=messages, tools=TOOLS, tool_choice=choice, temperature=1.0, seed=seed, max_tokens=400
    )
    chosen = answer.choices[0]
    calls = chosen.message.tool_calls or []
    if chosen.finish_reason == "length":
        return "length", ""
    if not calls:
        return "none", "" if choice == "auto" else f"no call for {question!r}"
    for made in calls:
        try:
            jsonschema.validate(json.loads(made.function.arguments), SCHEMAS[made.function.name][1])
        except (ValueError, KeyError, jsonschema.ValidationError) as error:
            return "invalid", f"{question!r}: {made.function.arguments!r}: {str(error)[:200]}"
    return "valid", ""


async def extract(client: openai.AsyncOpenAI, case: dict[str, Any], seed: int) -> Result:
    """Ask for the JSON of a text; the answer must validate."""
    example = next(test["data"] for test in case["tests"] if test["valid"])
    lines = "\n".join(f"{name}: {value}" for name, value in flat(example))
    messages: list[Any] = [{"role": "user", "content": f"Write this as JSON:\n\n{lines}"}]
    form: Any = {"type": "json", "value": case["schema"]}
    answer = await client.chat.completions.create(
        model=NAME, messages=messages, temperature=1.0, seed=seed, max_tokens=400, extra_body={"response_format": form}
    )
    if answer.choices[0].finish_reason == "length":
        return "length", ""
    try:
        found = json.loads(answer.choices[0].message.content or "")
        jsonschema.validators.validator_for(case["schema"])(case["schema"]).validate(found)
    except (ValueError, jsonschema.ValidationError) as error:
        return "invalid", f"{case['name']}: {str(error)[:200]}"
    return "valid", ""


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a JSON value with their paths."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if children is None:
        yield path or "value", str(value)
        return
    for name, child in children:
        yield from flat(child, f"{path}.{name}" if path else str(name))


def schemas(data: Path, count: int = 50) -> list[dict[str, Any]]:
    """The first schemas of a file that are objects of moderate size with a valid instance, half of them not plain."""
    found: list[dict[str, Any]] = []
    plain = 0
    with gzip.open(data, "rt", encoding="utf-8") as lines:
        for line in lines:
            case = json.loads(line)
            text = json.dumps(case["schema"])
            valid = [test["data"] for test in case["tests"] if test["valid"]]
            if len(text) > MAX_SCHEMA_CHARS or not valid or not isinstance(valid[0], dict):
                continue
            is_plain = not any(f'"{word}"' in text for word in ("oneOf", "anyOf", "not", "pattern", "$ref", "allOf"))
            if "uniqueItems" in text or (is_plain and plain >= count // 2):
                continue
            plain += is_plain
            found.append(case)
            if len(found) == count:
                break
    return found


@contextmanager
def serving(weights: Path) -> Iterator[str]:
    """`headrace serve` with these weights; its address."""
    entry = {"name": NAME, "source": str(weights.resolve()), "load": "startup", "context": 4096, "memory": "3GiB"}
    with (
        tempfile.TemporaryDirectory() as work,
        running_server("--models", str(write_models(Path(work), entry)), seconds=600) as url,
    ):
        yield url


if __name__ == "__main__":
    sys.exit(main())
