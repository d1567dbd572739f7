"""The engine against transformers' `generate` on the same weights: greedy output, token for token, in fp32.

Requests start and end at different steps, with prompts of very different length, under small token budgets and small
pools, so that chunked prefill, prefix hits, preemption and slot reuse all happen while the comparison runs.
"""

import random
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from engine.attention import cpu, sdpa
from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.execution import model_runner, probing
from engine.kernels.cpu import CpuKernels
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from tests.tiny_models import EOS_TOKEN_ID, FAMILIES, MIXTURES, VOCAB_SIZE, auto_class

TinyModelDir = Callable[[str], Path]


@lru_cache(maxsize=2)
def oracle(directory: Path) -> PreTrainedModel:
    model_class = auto_class(AutoConfig.from_pretrained(directory))
    return model_class.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def generate(directory: Path, prompt: list[int], max_tokens: int) -> list[int]:
    """What transformers says greedily; the same question, of other engines, is answered once."""
    return list(_generate(directory, tuple(prompt), max_tokens))


@cache
def _generate(directory: Path, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    model = oracle(directory)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False)
    return output[0, len(prompt) :].tolist()


def make_engine(directory: Path, **options: object) -> Engine:
    settings = {"dtype": "float32", "device": "cpu", "threads": 1, "max_num_seqs": 4, "block_size": 4, **options}
    if settings["device"] == "cuda":
        settings.setdefault("memory", "64MiB")  # several engines share the device in one run
    engine, _ = build_engine(EngineConfig(name="tiny", source=str(directory), **settings), lambda *_: None)  # type: ignore[arg-type]
    return engine


def run(engine: Engine, requests: dict[int, AddRequest], arrivals: dict[int, int]) -> dict[int, list[int]]:
    """Outputs by request; each request arrives before the step that `arrivals` says."""
    outputs: dict[int, list[int]] = {request_id: [] for request_id in requests}
    waiting = sorted(requests, key=lambda request_id: arrivals[request_id])
    for step in range(5000):
        while waiting and arrivals[waiting[0]] <= step:
            engine.add(requests[waiting.pop(0)])
        for output in engine.step():
            assert output.error is None, output.error
            outputs[output.request_id] += output.token_ids
        if not waiting and not engine.has_work:
            engine.step()  # the idle self-check
            stats = engine.stats()
            assert stats.blocks_owned == stats.num_running == stats.num_waiting == 0
            return outputs
    raise AssertionError("the engine did not become idle")


def random_mix(seed: int, *, longest: int, vocab: int = VOCAB_SIZE) -> tuple[dict[int, AddRequest], dict[int, int]]:
    generator = random.Random(seed)
    shared = [generator.randrange(3, vocab) for _ in range(longest)]
    requests, arrivals = {}, {}
    for request_id in range(10):
        length = generator.choice([1, 3, 5, 17, longest // 2, longest])
        prompt = [generator.randrange(3, vocab) for _ in range(length)]
        if request_id % 2:
            prompt = shared[: longest // 2] + prompt[: longest // 2]
        params = SamplingParams(max_tokens=generator.choice([1, 16, 28, 28]), temperature=0)
        requests[request_id] = AddRequest(request_id, prompt, params)
        arrivals[request_id] = generator.randint(0, 20)
    return requests, arrivals


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["cpu", "reference", "sdpa"])
def test_alone(family: str, attention: str, tiny_model_dir: TinyModelDir) -> None:
    directory = tiny_model_dir(family)
    engine = make_engine(directory, attention=attention)
    prompt = [(7 * i) % (VOCAB_SIZE - 3) + 3 for i in range(21)]
    request = AddRequest(1, prompt, SamplingParams(max_tokens=30, temperature=0))
    assert run(engine, {1: request}, {1: 0})[1] == generate(directory, prompt, 30)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"max_batched_tokens": 5, "num_blocks": 40}, id="chunked"),
        pytest.param({"num_blocks": 24, "context": 90, "max_batched_tokens": 16}, id="preempted"),
        pytest.param({"num_blocks": 24, "context": 90, "max_batched_tokens": 16, "overlap": True}, id="overlapped"),
        pytest.param({"fusion": False, "prefix_cache": False}, id="unfused", marks=pytest.mark.slow),
        pytest.param(
            {"attention": "sdpa", "num_blocks": 24, "context": 90, "max_batched_tokens": 16},
            id="sdpa",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_in_any_mix(family: str, options: dict[str, object], tiny_model_dir: TinyModelDir) -> None:
    directory = tiny_model_dir(family)
    requests, arrivals = random_mix(len(family), longest=60)
    engine = make_engine(directory, **options)
    outputs = run(engine, requests, arrivals)
    for request_id, request in requests.items():
        expected = generate(directory, request.prompt_token_ids, request.params.max_tokens)
        assert outputs[request_id] == expected, f"request {request_id}"
    if options.get("num_blocks") == 24:
        assert engine.stats().preemptions > 0
    if "prefix_cache" not in options:
        assert engine.stats().cached_tokens > 0


@pytest.mark.parametrize(
    "family",
    [
        family if family in ("mixtral", "qwen3_moe") else pytest.param(family, marks=pytest.mark.slow)
        for family in MIXTURES
    ],
)
def test_mixtures_of_experts(family: str, tiny_model_dir: TinyModelDir) -> None:
    """A token's experts are its own, whoever is computed beside it, by our products and by transformers' own."""
    directory = tiny_model_dir(family)
    requests, arrivals = random_mix(len(family), longest=60)
    for fusion in (True, False):
        engine = make_engine(directory, num_blocks=24, context=90, max_batched_tokens=16, fusion=fusion)
        runner = engine._runner
        assert isinstance(runner, model_runner.ModelRunner) and ("grouped experts" in runner.surgery) == fusion
        outputs = run(engine, requests, arrivals)
        for request_id, request in requests.items():
            expected = generate(directory, request.prompt_token_ids, request.params.max_tokens)
            assert outputs[request_id] == expected, f"request {request_id}"
        assert engine.stats().preemptions > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["tiles", "sdpa", "no_compiler"])
def test_long_prompts(family: str, way: str, tiny_model_dir: TinyModelDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long prompts take another way through the attention than short ones, and decoding one without a compiler."""
    monkeypatch.setattr(cpu, "SHORT_PROMPT_SCORES", 0)
    monkeypatch.setattr(sdpa, "SCORES_LIMIT", 1000)
    if way == "sdpa":
        monkeypatch.setattr(CpuKernels, "takes_prompts", lambda *_: False)
    if way == "no_compiler":
        monkeypatch.setattr(probing, "load_kernels", lambda dtype: None)
    directory = tiny_model_dir(family)
    requests, arrivals = random_mix(7, longest=60)
    outputs = run(make_engine(directory, max_batched_tokens=40), requests, arrivals)
    for request_id, request in requests.items():
        expected = generate(directory, request.prompt_token_ids, request.params.max_tokens)
        assert outputs[request_id] == expected, f"request {request_id}"


def test_end_of_sequence_ends_both(tiny_model_dir: TinyModelDir) -> None:
    """Some prompt makes the tiny model say its end-of-sequence token; both stop there, and it is part of the output."""
    directory = tiny_model_dir("llama")
    engine = make_engine(directory)
    ended = 0
    for first in range(3, 200):
        expected = generate(directory, [first], 12)
        request = AddRequest(first, [first], SamplingParams(max_tokens=12, temperature=0))
        assert run(engine, {first: request}, {first: 0})[first] == expected
        ended += expected[-1] == EOS_TOKEN_ID and len(expected) < 12
        if ended == 2:
            return
    pytest.fail("no prompt made the model stop")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_smollm2_real_weights(smollm2_dir: Path) -> None:
    engine = make_engine(smollm2_dir, threads=2, num_blocks=200, block_size=16, context=2000, max_batched_tokens=64)
    requests, arrivals = random_mix(11, longest=120, vocab=49000)
    outputs = run(engine, requests, arrivals)
    for request_id, request in requests.items():
        expected = generate(smollm2_dir, request.prompt_token_ids, request.params.max_tokens)
        assert outputs[request_id] == expected, f"request {request_id}"
