"""transformers' own continuous batching on the same random weights, as a peer that is always at hand.

Its defaults are kept: it finds its own cache size, records its own graphs, and takes FlashAttention if that is
installed. `generate_batch` is the same in transformers 5.17 to 5.23.
"""

from typing import Any

import torch

from engine.weights.random_model import SEED_FILE
from engine.weights.sources import resolve


def load(model: str, device: torch.device) -> Any:
    """The model as transformers makes it, with the weights that `random://MODEL` has."""
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = resolve(f"random://{model}").directory
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        torch.manual_seed(int((directory / SEED_FILE).read_text(encoding="utf-8")))
        loaded = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return loaded.eval()


def generated(loaded: Any, prompts: list[list[int]], answer: int) -> dict[str, float]:
    """From the moment the requests are made to the last token, by the peer's own time stamps.

    Raises RuntimeError where a request has no answer.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = GenerationConfig(max_new_tokens=answer, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # On a CPU its own choice would be most of the machine's memory.
    small = None if loaded.device.type == "cuda" else ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=256)
    answers = loaded.generate_batch(
        prompts, generation_config=config, continuous_batching_config=small, record_timestamps=True
    ).values()
    tokens = sum(len(one.generated_tokens) for one in answers)
    failed = [one.error for one in answers if one.error]
    if failed or tokens != answer * len(prompts):
        raise RuntimeError(f"{tokens} of {answer * len(prompts)} tokens came: {failed[:1]}")
    began = min(one.created_time for one in answers)
    ended = max(one.timestamps[-1] for one in answers)
    return {"tokens_per_second": tokens / (ended - began), "requests": len(prompts)}


def prompt_ids(number: int, length: int, vocab: int) -> list[int]:
    """A prompt that shares no beginning with another."""
    return [(7919 * (number + 1) + 31 * at) % (vocab - 1) for at in range(length)]
