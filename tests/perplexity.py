"""What rounding costs in perplexity, on text that comes with Python: `python -m tests.perplexity SOURCE`.

The text is that of `pydoc_data.topics`, the reference that `help()` shows. Evenly spread windows of it are scored by
the engine as prompts, with plain fp32 first, then with each form of FP8. With `--activations`, for a GGUF file: with
its weights unpacked to fp32 in transformers' own layers first, then as they are with each form of activations.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import Tokenizer

from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from engine.weights.sources import resolve
from tests.engine.models.test_quantized import unpacked_copy
from tests.engine.test_oracle import oracle

FORMS: dict[str, dict[str, Any]] = {
    "unquantised": {},
    "FP8 KV cache": {"kv_dtype": "fp8"},
    "FP8 weights": {"quantization": "fp8"},
    "both": {"kv_dtype": "fp8", "quantization": "fp8"},
}
ACTIVATIONS: dict[str, dict[str, Any]] = {
    form: {"activations": form, "attention": "auto", "fusion": True} for form in ("int16", "int8")
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
    settings = {"attention": "reference", "fusion": False, **options}
    config = EngineConfig(
        name="scored", source=source, dtype="float32", device="cpu", context=1024, max_num_seqs=2, num_blocks=160,
        prefix_cache=False, threads=2, **settings,
    )  # fmt: skip
    return losses(build_engine(config, lambda *_: None)[0], prompts)


@torch.inference_mode()
def unpacked_losses(path: Path, prompts: list[list[int]]) -> list[float]:
    """The same by transformers' own layers, with the weights of a GGUF file unpacked to fp32."""
    with tempfile.TemporaryDirectory() as scratch:
        model: Any = oracle(unpacked_copy(path, Path(scratch) / "unpacked"))
        scores = [model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1) for prompt in prompts]
    told = [score.gather(1, torch.tensor(prompt[1:])[:, None]) for score, prompt in zip(scores, prompts, strict=True)]
    return [-float(one.double().mean()) for one in told]


def main() -> None:
    """Print a line for each form: the perplexity, and by how many per cent it is above the first one."""
    parser = argparse.ArgumentParser(description="Measure what rounding costs in perplexity.")
    parser.add_argument("source", help="of a model, as in models.yaml")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--activations", action="store_true", help="of a GGUF file's products, not FP8")
    options = parser.parse_args()
    found = resolve(options.source, converts=not options.activations)
    prompts = windows(found.directory / "tokenizer.json", options.windows, options.length)
    forms: dict[str, Callable[[], list[float]]] = {
        name: partial(score, options.source, prompts, **form)
        for name, form in (ACTIVATIONS if options.activations else FORMS).items()
    }
    if options.activations:
        if found.gguf is None:
            raise SystemExit(f"{options.source} is no GGUF file")
        forms = {"unpacked": partial(unpacked_losses, found.gguf, prompts), **forms}
    before = None
    for name, losses_of in forms.items():
        loss = sum(losses_of()) / len(prompts)
        before = loss if before is None else before
        print(f"{name:14} {math.exp(loss):9.4f} {100 * math.expm1(loss - before):+8.4f} %", flush=True)


if __name__ == "__main__":
    main()
