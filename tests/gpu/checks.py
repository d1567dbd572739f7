"""What `make gpu` checks of whole engines, written for any device, so that `make test` tries the checks on the CPU."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.build import build_engine
from engine.config import EngineConfig
from engine.constraint import Constraint
from engine.engine import Engine
from engine.execution.model_runner import ModelRunner
from engine.messages import AddRequest, SequenceOutput
from engine.sampling_params import SamplingParams
from tests.engine.sampling.reference import reference_distribution
from tests.engine.test_oracle import generate, make_engine, random_mix, run
from tests.tiny_models import EOS_TOKEN_ID, VOCAB_SIZE

ROUNDING_RATIO = 3.0
"""Logits in bf16 may be so many times as far from those in fp32 as transformers' own in bf16 are."""
FP8_ROUNDING_RATIO = 16 * ROUNDING_RATIO
"""For weights or keys in e4m3, whose fraction has three bits where bf16 has seven."""
DATE = Constraint(kind="regex", source=r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
TINY = "random://llama?hidden_size=64&intermediate_size=96&num_hidden_layers=3&num_attention_heads=4&vocab_size=320"
DRAWS = 2048


@lru_cache(maxsize=2)
def judge(directory: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """transformers' own model."""
    loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager")
    return loaded.to(device).eval()


def play(engine: Engine, requests: list[AddRequest]) -> dict[tuple[int, int], list[SequenceOutput]]:
    """All outputs by request and choice, when every request has ended, which a constraint's compiling may delay."""
    for request in requests:
        engine.add(request)
    outputs: dict[tuple[int, int], list[SequenceOutput]] = {}
    running = {request.request_id for request in requests}
    deadline = time.monotonic() + 60
    while running:
        assert time.monotonic() < deadline, f"requests {sorted(running)[:5]} do not end"
        for output in engine.step():
            outputs.setdefault((output.request_id, output.index), []).append(output)
            if output.finish_reason is not None:
                running.discard(output.request_id)
        if not engine.has_work:
            time.sleep(0.001)
    return outputs


def tokens_of(outputs: list[SequenceOutput]) -> list[int]:
    """The generated tokens; asserts that nothing failed."""
    assert not [output.error for output in outputs if output.error]
    return [token for output in outputs for token in output.token_ids]


@torch.inference_mode()
def logits_are_as_good_as_transformers(
    directory: Path, device: str, dtype: torch.dtype, *, ratio: float = ROUNDING_RATIO, **options: Any
) -> None:
    """Log-probabilities of a prompt's tokens, against transformers' in fp32, by the median error.

    Not by the mean: in bf16 a token may be routed to other experts, on both sides.
    """
    prompt = [(11 * at) % (VOCAB_SIZE - 3) + 3 for at in range(60)]
    engine = make_engine(directory, device=device, dtype=str(dtype).removeprefix("torch."), max_batched_tokens=32,
                         **options)  # fmt: skip
    request = AddRequest(1, prompt, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0))
    outputs = play(engine, [request])[1, 0]
    tokens_of(outputs)
    found = [entry.logprob for output in outputs for entry in output.prompt_logprobs or ()]
    ids = torch.tensor([prompt], device=device)

    def logprobs(model_dtype: torch.dtype) -> torch.Tensor:
        logits = judge(directory, model_dtype, device)(ids).logits[0, :-1].float().log_softmax(-1)
        return logits.gather(1, ids[0, 1:, None]).squeeze(1)

    exact = logprobs(torch.float32)
    ours = torch.tensor(found, device=device)
    assert ours.shape == exact.shape

    def error(values: torch.Tensor) -> float:
        return float((values - exact).abs().median())

    bound = ratio * error(logprobs(dtype)) + 2e-4
    assert error(ours) <= bound, (error(ours), bound)


def every_way_says_what_generate_says(directory: Path, device: str, **options: Any) -> ModelRunner:
    """Greedy tokens in fp32 of requests that come and go; the runner, for a look at what it did."""
    requests, arrivals = random_mix(5, longest=40)
    engine = make_engine(directory, device=device, max_num_seqs=6, **options)
    outputs = run(engine, requests, arrivals)
    for request_id, request in requests.items():
        wanted = generate(directory, request.prompt_token_ids, request.params.max_tokens)
        assert outputs[request_id] == wanted[: len(outputs[request_id])] and outputs[request_id], request_id
    runner = engine._runner
    assert isinstance(runner, ModelRunner)
    return runner


def the_engine_outlives_a_lack_of_memory(
    engine: Engine, take_memory: Callable[[], Callable[[], None]], *, long: int
) -> int:
    """A prompt of `long` tokens meets a device whose memory `take_memory` has taken, and gives back when called.

    Returns how often a forward pass ran out of memory. Everybody gets an end, and afterwards all is as before.
    """
    runner = engine._runner
    probe = AddRequest(1, [5, 6, 7, 8], SamplingParams(max_tokens=12, temperature=0, ignore_eos=True))
    before = tokens_of(play(engine, [probe])[1, 0])
    whole, failures = runner.forward, 0

    def counted(rows: Any) -> Any:
        nonlocal failures
        try:
            return whole(rows)
        except torch.OutOfMemoryError:
            failures += 1
            raise

    runner.forward = counted  # type: ignore[method-assign]
    give_back = take_memory()
    try:
        prompt = [3 + at % 200 for at in range(long)]
        outputs = play(engine, [replace_id(probe, 2), AddRequest(3, prompt, SamplingParams(max_tokens=2))])
    finally:
        give_back()
        runner.forward = whole  # type: ignore[method-assign]
    for request_id in (2, 3):
        assert outputs[request_id, 0][-1].finish_reason is not None, f"request {request_id} has no end"
    assert tokens_of(play(engine, [replace_id(probe, 4)])[4, 0]) == before
    stats = engine.stats()
    assert stats.blocks_owned == stats.num_running == stats.num_waiting == 0
    return failures


def replace_id(request: AddRequest, request_id: int) -> AddRequest:
    """The same request once more."""
    return AddRequest(request_id, request.prompt_token_ids, request.params)


def constrained_rows_leave_free_ones_alone(device: str) -> None:
    """Half of the rows must be dates; the others say what they say without them."""
    config = EngineConfig(name="tiny", source=TINY, device=device, dtype="float32", context=128, memory="64MiB",
                          max_num_seqs=16)  # fmt: skip
    engine, info = build_engine(config, lambda *_: None)
    vocabulary = json.loads((Path(info.model_dir) / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    text = {number: token for token, number in vocabulary.items()}
    free = [
        AddRequest(number, [3 + number, 9, 4], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))
        for number in range(6)
    ]
    bound = [
        AddRequest(100 + number, [7, 3 + number], SamplingParams(max_tokens=20, temperature=1.0, constraint=DATE))
        for number in range(6)
    ]
    alone = {request.request_id: tokens_of(play(engine, [request])[request.request_id, 0]) for request in free}
    play(engine, [replace_id(bound[0], 99)])  # compiles the constraint, so that nobody waits for that in the mixture
    mixed = [request for pair in zip(free, bound, strict=True) for request in pair]
    outputs = play(engine, mixed)
    engine.close()
    for request in free:
        assert tokens_of(outputs[request.request_id, 0]) == alone[request.request_id]
    for request in bound:
        found = "".join(text[token] for token in tokens_of(outputs[request.request_id, 0]) if token in text)
        assert re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", found), found


@torch.inference_mode()
def draws_follow_the_probabilities(directory: Path, device: str, params: SamplingParams) -> None:
    """Many first tokens of one prompt, by a chi-square test that a right sampler fails once in ten thousand runs.

    The seeds are fixed, so that this run is none of those.
    """
    prompt = [(11 * at) % (VOCAB_SIZE - 3) + 3 for at in range(9)]
    logits = judge(directory, torch.float32, device)(torch.tensor([prompt], device=device)).logits[0, -1].float().cpu()
    wanted = reference_distribution(logits, prompt, [], params, [EOS_TOKEN_ID])
    engine = make_engine(directory, device=device, max_num_seqs=64)
    requests = [AddRequest(n, prompt, replace(params, max_tokens=1, seed=n)) for n in range(DRAWS)]
    counts = torch.zeros(VOCAB_SIZE, dtype=torch.float64)
    for start in range(0, DRAWS, 512):
        for outputs in play(engine, requests[start : start + 512]).values():
            counts[tokens_of(outputs)[0]] += 1
    assert not counts[wanted == 0].any(), "a token was drawn that may not be"
    expected = wanted * DRAWS
    common = expected >= 5
    cells = int(common.sum()) + 1
    rest = max(float(expected[~common].sum()), 1e-9)
    distance = float(((counts - expected)[common] ** 2 / expected[common]).sum())
    distance += (float(counts[~common].sum()) - rest) ** 2 / max(rest, 1.0)
    assert distance < chi_square_limit(cells), (distance, cells)


def chi_square_limit(cells: int) -> float:
    """What chi-square of so many cells exceeds once in ten thousand (Wilson and Hilferty, 1931)."""
    freedom = max(1, cells - 1)
    return freedom * (1 - 2 / (9 * freedom) + 3.72 * (2 / (9 * freedom)) ** 0.5) ** 3
