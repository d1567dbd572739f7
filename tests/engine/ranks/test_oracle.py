"""Models that ranks share against transformers' `generate` and against one rank: token for token, in fp32."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from engine.sizing.split import SPLIT_KINDS
from tests.engine.ranks.engines import shared_engine
from tests.engine.test_oracle import generate, make_engine, random_mix, run
from tests.engine.test_oracle_vision import CONVERSATIONS, answers
from tests.soaking import marked_for_soak
from tests.tiny_models import FAMILIES, VISION_FAMILIES, VOCAB_SIZE
from tests.vision_models import Eyes, build_seeing_model

TinyModelDir = Callable[[str], Path]

TEXT = [family for family in FAMILIES if FAMILIES[family]["model_type"] in SPLIT_KINDS]
SEEING = ["qwen2_5_vl", "mllama", "gemma3_vision"]
TIGHT = {"num_blocks": 24, "context": 90, "max_batched_tokens": 16}
FOUR = ("gemma3", "deepseek_v3", "qwen3")
"""Of which heads have norms, of one width and of several, and latents."""
QUICK = ("llama", "gemma2", "phi3", "deepseek_v3", "mllama")


def marked(families: list[str]) -> list[object]:
    """All of them, those that share their ways with others among the slow tests."""
    return [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in families]


def test_every_kind_that_is_divided_is_compared_here() -> None:
    kinds = {VISION_FAMILIES[family].get("text_config", {}).get("model_type") for family in SEEING}
    types = {FAMILIES[family]["model_type"] for family in TEXT}
    of_towers = {"qwen2_5_vl_text", "mllama_text_model"}  # transformers' own names of parts of these two
    assert types | (kinds - {None}) | of_towers >= SPLIT_KINDS


def compare(engine: Engine, directory: Path, family: str) -> None:
    """Greedy requests in a mix equal `generate`, sampled ones an engine of one rank."""
    requests, arrivals = random_mix(len(family), longest=60)
    outputs = run(engine, requests, arrivals)
    for request_id, request in requests.items():
        expected = generate(directory, request.prompt_token_ids, request.params.max_tokens)
        assert outputs[request_id] == expected, f"request {request_id}"
    stats = engine.stats()
    assert stats.preemptions > 0 and stats.cached_tokens > 0
    sampled = {
        number: AddRequest(
            number, request.prompt_token_ids, replace(request.params, temperature=0.9, top_p=0.95, seed=number)
        )
        for number, request in requests.items()
    }
    alone = run(make_engine(directory, **TIGHT), sampled, arrivals)
    assert run(engine, sampled, arrivals) == alone
    assert alone != outputs, "sampling changed nothing"


@pytest.mark.parametrize("family", marked(TEXT))
def test_two_ranks(family: str, tiny_model_dir: TinyModelDir) -> None:
    with shared_engine(tiny_model_dir(family), **TIGHT) as engine:
        compare(engine, tiny_model_dir(family), family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family if family in FOUR else marked_for_soak(family) for family in TEXT])
def test_four_ranks_of_which_two_have_the_same_kv_head(family: str, tiny_model_dir: TinyModelDir) -> None:
    with shared_engine(tiny_model_dir(family), 4, overlap=True, **TIGHT) as engine:
        compare(engine, tiny_model_dir(family), family)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"overlap": True, "graphs": True, "attention": "reference"}, id="overlapped and padded"),
        pytest.param({"fusion": False, "attention": "sdpa"}, id="unfused", marks=pytest.mark.slow),
    ],
)
def test_in_other_ways(options: dict[str, object], tiny_model_dir: TinyModelDir) -> None:
    with shared_engine(tiny_model_dir("qwen2"), **TIGHT, **options) as engine:
        compare(engine, tiny_model_dir("qwen2"), "qwen2")


def test_a_token_that_pads_may_be_another_ranks(tiny_model_dir: TinyModelDir, tmp_path: Path) -> None:
    """As in Phi-4, whose token is one of the last."""
    directory = shutil.copytree(tiny_model_dir("phi3"), tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"pad_token_id": VOCAB_SIZE - 1}))
    request = AddRequest(1, [5, VOCAB_SIZE - 1, 7], SamplingParams(max_tokens=8, temperature=0))
    with shared_engine(directory) as engine:
        assert run(engine, {1: request}, {1: 0})[1] == generate(directory, request.prompt_token_ids, 8)


@pytest.mark.parametrize("family", marked(SEEING))
def test_images(family: str, tmp_path: Path) -> None:
    eyes = Eyes(family, build_seeing_model(family, tmp_path))
    with shared_engine(eyes.directory, max_batched_tokens=7) as engine:
        found = answers(eyes, engine, list(CONVERSATIONS.values()))
    for (name, parts), answer in zip(CONVERSATIONS.items(), found, strict=True):
        assert answer == eyes.generate(parts, 8), name
