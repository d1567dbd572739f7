"""Seeded sampling through the whole engine against transformers and sampling the long way, in fp32.

The reference runs the whole sequence through transformers' own model, takes the distribution the request asks for and
draws with the same noise. It follows what the engine said: had the engine left the reference's path at some token, that
token would differ there. One forward then gives the distributions of all positions.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.engine import Engine
from engine.messages import AddRequest, SequenceOutput, TokenLogprobs
from engine.sampling_params import SamplingParams
from tests.engine.sampling.reference import MIXES, noise, reference_distribution, reference_draw
from tests.engine.test_oracle import make_engine, oracle
from tests.tiny_models import EOS_TOKEN_ID, FAMILIES, VOCAB_SIZE

TinyModelDir = Callable[[str], Path]
Answer = tuple[list[int], list[TokenLogprobs], str | None]

TINY_ROUNDING, REAL_ROUNDING = 1e-5, 1e-4
"""Noise this close to the border of two tokens may fall on either side: thirty layers and 49,000 tokens in fp32 move
the cumulative distribution by some 4e-5."""
EXTRA = {
    "stop": SamplingParams(max_tokens=9, min_tokens=2, stop_token_ids=tuple(range(40, 100)), temperature=1.5),
    "ignore_eos": SamplingParams(max_tokens=9, ignore_eos=True, logit_bias={EOS_TOKEN_ID: 30.0}),
    "likely_eos": SamplingParams(max_tokens=9, min_tokens=4, logit_bias={EOS_TOKEN_ID: 30.0}),
}


def requests_for(vocab: int, *, max_tokens: int, longest: int) -> dict[int, AddRequest]:
    """Every mix of parameters, with prompts of many lengths of which half share a beginning."""
    generator = torch.Generator().manual_seed(vocab)
    shared = torch.randint(3, vocab, (longest,), generator=generator).tolist()
    made = {}
    for i, params in enumerate({**MIXES, **EXTRA}.values()):
        own = torch.randint(3, vocab, (1 + (7 * i) % longest,), generator=generator).tolist()
        prompt = shared[: longest // 2] + own[: longest // 2] if i % 2 else own
        wanted = [None, 0, 5, 20][i % 4]
        params = replace(params, max_tokens=max_tokens, seed=(-1) ** i * (i + 3) * 2**50, logprobs=wanted)
        made[i] = AddRequest(i, prompt, params)
    return made


def play(engine: Engine, requests: dict[int, AddRequest], gap: int) -> dict[tuple[int, int], Answer]:
    """Answers by request and choice; a request arrives every `gap` steps."""
    outputs: dict[tuple[int, int], list[SequenceOutput]] = {}
    arriving = list(requests.values())
    for step in range(5000):
        while arriving and step >= gap * (len(requests) - len(arriving)):
            engine.add(arriving.pop(0))
        for output in engine.step():
            assert output.error is None, output.error
            outputs.setdefault((output.request_id, output.index), []).append(output)
        if not arriving and not engine.has_work:
            return {key: answer(found) for key, found in outputs.items()}
    raise AssertionError("the engine did not become idle")


def answer(outputs: list[SequenceOutput]) -> Answer:
    logprobs = [entry for output in outputs for entry in output.logprobs or []]
    return [token for output in outputs for token in output.token_ids], logprobs, outputs[-1].finish_reason


@torch.inference_mode()
def check_against_transformers(directory: Path, request: AddRequest, got: Answer, rounding: float) -> None:
    token_ids, logprobs, reason = got
    prompt, params = request.prompt_token_ids, request.params
    assert params.seed is not None
    logits = oracle(directory)(torch.tensor([prompt + token_ids])).logits[0, len(prompt) - 1 : -1].float()
    for position, token in enumerate(token_ids):
        distribution = reference_distribution(logits[position], prompt, token_ids[:position], params, [EOS_TOKEN_ID])
        u = noise(params.seed, len(prompt) + position)
        above = float(distribution[: token + 1].sum())
        near = above - float(distribution[token]) - rounding <= u <= above + rounding
        assert distribution[token] > 0 and near, (
            f"request {request.request_id}, position {position}: {token} in place of {reference_draw(distribution, u)}"
        )
    check_end(params, token_ids, reason)
    assert len(logprobs) == (0 if params.logprobs is None else len(token_ids))
    if params.logprobs is not None:
        check_logprobs(logits.log_softmax(-1), token_ids, logprobs, params.logprobs)


def check_end(params: SamplingParams, token_ids: list[int], reason: str | None) -> None:
    ending = {*params.stop_token_ids} | (set() if params.ignore_eos else {EOS_TOKEN_ID})
    ends = [i + 1 for i, token in enumerate(token_ids) if token in ending and i + 1 >= params.min_tokens]
    if ends:
        assert (ends[0], reason) == (len(token_ids), "stop")
    else:
        assert (len(token_ids), reason) == (params.max_tokens, "length")


def check_logprobs(exact: torch.Tensor, token_ids: list[int], logprobs: list[TokenLogprobs], wanted: int) -> None:
    for row, token, entry in zip(exact, token_ids, logprobs, strict=True):
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert len(entry.top_ids) == len(set(entry.top_ids)) == wanted
        assert entry.top_logprobs == pytest.approx(row.topk(wanted).values.tolist(), abs=1e-4)
        assert entry.top_logprobs == pytest.approx(row[entry.top_ids].tolist(), abs=1e-4)


def same(one: Answer, other: Answer) -> bool:
    """Same tokens and end; log-probabilities within what the batch's shape may change."""
    pairs = zip(one[1], other[1], strict=True)
    return (one[0], one[2]) == (other[0], other[2]) and all(abs(a.logprob - b.logprob) < 1e-4 for a, b in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_seeded_answers_are_the_reference_s_in_any_company(family: str, tiny_model_dir: TinyModelDir) -> None:
    directory = tiny_model_dir(family)
    requests = requests_for(VOCAB_SIZE, max_tokens=10, longest=40)
    roomy = make_engine(directory)
    alone = {}
    for i, request in requests.items():
        alone |= play(roomy, {i: AddRequest(i, request.prompt_token_ids, request.params, salt=b"%d" % i)}, 0)
    assert roomy.stats().cached_tokens == 0
    for (i, _), got in alone.items():
        check_against_transformers(directory, requests[i], got, TINY_ROUNDING)
    assert {got[2] for got in alone.values()} == {"stop", "length"}
    small = make_engine(directory, num_blocks=18, context=60, max_batched_tokens=7)
    for engine, gap in ((roomy, 0), (roomy, 2), (small, 1)):
        for key, got in play(engine, requests, gap).items():
            assert same(got, alone[key]), f"request {key}"
    assert roomy.stats().cached_tokens > 0 and small.stats().cached_tokens > 0
    assert small.stats().preemptions > 0


def test_choices_and_unseeded_requests_differ(tiny_model_dir: TinyModelDir) -> None:
    engine = make_engine(tiny_model_dir("llama"))
    prompt = list(range(3, 30))
    seeded = SamplingParams(max_tokens=12, temperature=1.5, seed=7, ignore_eos=True)
    (single,) = play(engine, {1: AddRequest(1, prompt, seeded)}, 0).values()
    choices = play(engine, {2: AddRequest(2, prompt, seeded, n=4)}, 0)
    assert choices[2, 0][0] == single[0]
    assert len({tuple(got[0]) for got in choices.values()}) == 4
    again = play(engine, {3: AddRequest(3, prompt, seeded, n=4)}, 0)
    assert [got[0] for got in again.values()] == [got[0] for got in choices.values()]
    free = replace(seeded, seed=None)
    unseeded = play(engine, {i: AddRequest(i, prompt, free, n=2) for i in (4, 5, 6)}, 0)
    assert len({tuple(got[0]) for got in unseeded.values()}) == 6


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_smollm2_real_weights(smollm2_dir: Path) -> None:
    vocab = 49000
    requests = requests_for(vocab, max_tokens=12, longest=60)
    engine = make_engine(smollm2_dir, threads=2, num_blocks=40, block_size=8, context=120, max_batched_tokens=24)
    assert engine.context == 120
    for (i, _), got in play(engine, requests, 1).items():
        check_against_transformers(smollm2_dir, requests[i], got, REAL_ROUNDING)
