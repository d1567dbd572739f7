"""Rotary scaling that depends on length must not depend on whoever shares the batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from tests.engine.test_oracle import generate, make_engine, run
from tests.tiny_models import COMMON

ORIGINAL = 64
SCALINGS: dict[str, dict[str, Any]] = {
    "longrope": {
        "model_type": "phi3",
        "original_max_position_embeddings": ORIGINAL,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "factor": 8.0,
            "original_max_position_embeddings": ORIGINAL,
        },
    },
    "dynamic": {
        "model_type": "llama",
        "max_position_embeddings": ORIGINAL,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    },
    "by_layer": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "max_position_embeddings": ORIGINAL,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
    },
}


@pytest.fixture(params=SCALINGS)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = AutoConfig.for_model(**(COMMON | SCALINGS[request.param]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                scale = 1.0 if "embed" in name else 1.5 * parameter.shape[-1] ** -0.5
                torch.nn.init.normal_(parameter, std=scale)
    model.save_pretrained(tmp_path)
    return tmp_path


def request(request_id: int, length: int, max_tokens: int) -> AddRequest:
    prompt = [(7 * i + request_id) % 300 + 3 for i in range(length)]
    return AddRequest(request_id, prompt, SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True))


def test_a_long_neighbour_changes_nothing(directory: Path) -> None:
    short, long = request(1, 30, 14), request(2, 2 * ORIGINAL, 20)
    alone = run(make_engine(directory, context=200), {1: short}, {1: 0})
    together = run(make_engine(directory, context=200), {1: short, 2: long}, {1: 0, 2: 3})
    assert together[1] == alone[1]


def test_a_context_within_the_original_is_served_as_transformers_does(directory: Path) -> None:
    short = request(1, 30, 14)
    answer = run(make_engine(directory, context=ORIGINAL), {1: short}, {1: 0})[1]
    expected = generate(directory, short.prompt_token_ids, 14)
    assert answer[: len(expected)] == expected


def test_a_prompt_beyond_the_original_is_served_as_transformers_does(directory: Path) -> None:
    """One forward of transformers over the prompt, at the engine's context, gives the first token."""
    long = request(1, 150, 1)
    answer = run(make_engine(directory, context=150 + 1), {1: long}, {1: 0})[1]
    assert answer == generate(directory, long.prompt_token_ids, 1)
