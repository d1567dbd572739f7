"""What asking from Python costs beside the engine alone: `python -m bench.offline`.

    python -m bench.offline [--prompts 64] [--tokens 64] [--rounds 4]

The same prompts and lengths, greedy, to `Engine` in this process and through `headrace.LLM`, in turn; new tokens a
second of each round. Nothing is in the prefix cache, for each round has prompts of its own.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from bench.latency import ROOT, Bench
from headrace import LLM
from server.benchmarks.record import circumstances, table, write_json
from server.config.settings import load_models_file

PROMPT_TOKENS = 48


def prompts_of(salt: int, count: int) -> list[list[int]]:
    """Token ids of ordinary tokens that no other round has."""
    return [
        [1000 + (salt * 7919 + number * 613 + i * 31) % 30_000 for i in range(PROMPT_TOKENS)] for number in range(count)
    ]


def rate(work: Callable[[], int]) -> float:
    """Tokens a second of what returns their number."""
    began = time.perf_counter()
    return work() / (time.perf_counter() - began)


def alone(bench: Bench, prompts: list[list[int]], num_tokens: int) -> int:
    """The engine's answers; how many tokens they have."""
    for prompt in prompts:
        bench.add(prompt, num_tokens)
    found = 0
    while found < len(prompts) * num_tokens:
        found += sum(len(output.token_ids) for output in bench.engine.step())
    return found


def from_python(llm: LLM, prompts: list[list[int]], num_tokens: int) -> int:
    """The answers of `LLM.complete`; how many tokens they have."""
    answers = llm.complete(prompts, max_tokens=num_tokens, temperature=0, ignore_eos=True, progress=False)
    return sum(answer.completion_tokens for answer in answers if not isinstance(answer, Exception))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    file = load_models_file(ROOT / "models.yaml")
    spec = file.find(file.default)
    bench, rows = Bench(spec.source, 0), []
    with LLM(spec.name, models=ROOT / "models.yaml", memory="1GiB") as llm:
        for turn in range(options.rounds + 1):  # the first is the machine's own
            prompts = prompts_of(turn, options.prompts)
            engine = rate(lambda prompts=prompts: alone(bench, prompts, options.tokens))
            python = rate(lambda prompts=prompts: from_python(llm, prompts, options.tokens))
            if turn:
                rows.append((engine, python))
    print(table(["engine, tok/s", "from Python, tok/s"], [[f"{one:.0f}" for one in row] for row in rows]))
    share = statistics.median(python / engine for engine, python in rows)
    print(f"from Python {share:.0%} of the engine's own, in the middle")
    if options.json:
        write_json(options.json, {**circumstances(), "options": vars(options), "rounds": rows, "share": share})


if __name__ == "__main__":
    main()
