"""What FP8 costs in perplexity, on text that comes with Python: `python -m tests.perplexity SOURCE`.

The text is that of `pydoc_data.topics`, the reference that `help()` shows. Evenly spread windows of it are scored by
the engine as prompts, with plain fp32 first, then with each form of FP8.
"""

import argparse
import math
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tokenizers import Tokenizer

from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams

FORMS: dict[str, dict[str, Any]] = {
    "unquantised": {},
    "FP8 KV cache": {"kv_dtype": "fp8"},
    "FP8 weights": {"quantization": "fp8"},
    "both": {"kv_dtype": "fp8", "quantization": "fp8"},
}


def windows(tokenizer: Path, count: int, length: int) -> list[list[int]]:
    """`count` pieces of the text, of `length` tokens each."""
    text = "\n".join(topics[name] for name in sorted(topics))
    size = len(text) // count
    encode = Tokenizer.from_file(str(tokenizer)).encode
    return [encode(text[at * size : (at + 1) * size], add_special_tokens=False).ids[:length] for at in range(count)]


def losses(engine: Engine, prompts: list[list[int]]) -> list[float]:
    """Mean negative log-probability of the tokens of each prompt after its first."""
    for number, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        engine.add(AddRequest(number, prompt, params))
    sums, counts = [0.0] * len(prompts), [0] * len(prompts)
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            for entry in output.prompt_logprobs or ():
                sums[output.request_id] -= entry.logprob
                counts[output.request_id] += 1
    assert counts == [len(prompt) - 1 for prompt in prompts]
    return [total / count for total, count in zip(sums, counts, strict=True)]


def score(source: str, prompts: list[list[int]], **options: Any) -> list[float]:
    """`losses` of a model in fp32 on the CPU, with attention that reads every form of KV cache."""
    config = EngineConfig(
        name="scored", source=source, dtype="float32", device="cpu", attention="reference", context=1024,
        max_num_seqs=2, num_blocks=160, prefix_cache=False, fusion=False, threads=2, **options,
    )  # fmt: skip
    return losses(build_engine(config, lambda *_: None)[0], prompts)


def main() -> None:
    """Print a line for each form: the perplexity, and by how many per cent it is above that without FP8."""
    parser = argparse.ArgumentParser(description="Measure what FP8 costs in perplexity.")
    parser.add_argument("source", help="of a model, as in models.yaml")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    config = EngineConfig(name="tokenizer", source=options.source)
    from engine.weights.sources import resolve

    prompts = windows(resolve(config.source).directory / "tokenizer.json", options.windows, options.length)
    before = None
    for name, form in FORMS.items():
        found = sum(score(options.source, prompts, **form)) / len(prompts)
        before = found if before is None else before
        print(f"{name:14} {math.exp(found):8.3f} {100 * math.expm1(found - before):+6.2f} %", flush=True)


if __name__ == "__main__":
    main()
