"""Log-probabilities of prompts against transformers' forward pass on the same weights, in fp32."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.engine import Engine
from engine.messages import AddRequest, SequenceOutput, TokenLogprobs
from engine.sampling import logprobs
from engine.sampling_params import SamplingParams
from tests.engine.test_oracle import generate, make_engine, oracle
from tests.tiny_models import FAMILIES, VOCAB_SIZE

TinyModelDir = Callable[[str], Path]
TOLERANCE = 2e-4


def prompt_of(length: int, salt: int) -> list[int]:
    """The first half is shared by all, so that the prefix cache has something to offer."""
    shared = [(5 * i) % (VOCAB_SIZE - 3) + 3 for i in range(length // 2)]
    return shared + [(7 * i + 13 * salt) % (VOCAB_SIZE - 3) + 3 for i in range(length - len(shared))]


def run(engine: Engine, *, preempt_at: frozenset[int] = frozenset()) -> dict[tuple[int, int], list[SequenceOutput]]:
    outputs: dict[tuple[int, int], list[SequenceOutput]] = {}
    for step in range(500):
        for output in engine.step():
            assert output.error is None, output.error
            outputs.setdefault((output.request_id, output.index), []).append(output)
        if step in preempt_at:
            for sequence in list(engine._scheduler.running):
                engine._scheduler.preempt(sequence)
        if not engine.has_work:
            engine.step()
            return outputs
    raise AssertionError("the engine did not become idle")


def check(directory: Path, prompt: list[int], outputs: list[SequenceOutput], num_top: int) -> None:
    """Every token of the prompt but the first, once, with the likeliest alternatives."""
    found: list[TokenLogprobs] = [entry for output in outputs for entry in output.prompt_logprobs or ()]
    with torch.inference_mode():
        expected = oracle(directory)(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    assert len(found) == len(prompt) - 1
    for position, entry in enumerate(found):
        row = expected[position]
        assert entry.logprob == pytest.approx(float(row[prompt[position + 1]]), abs=TOLERANCE)
        assert len(entry.top_ids) == len(entry.top_logprobs) == num_top
        assert entry.top_logprobs == pytest.approx(row.topk(num_top).values.tolist(), abs=TOLERANCE)
        assert entry.top_logprobs == pytest.approx(row[entry.top_ids].tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["cpu", "reference"])
def test_alone(family: str, attention: str, tiny_model_dir: TinyModelDir) -> None:
    directory = tiny_model_dir(family)
    engine = make_engine(directory, attention=attention)
    prompt = prompt_of(29, 1)
    engine.add(AddRequest(1, prompt, SamplingParams(max_tokens=0, prompt_logprobs=3)))
    outputs = run(engine)[1, 0]
    check(directory, prompt, outputs, 3)
    assert outputs[-1].finish_reason == "length" and not any(output.token_ids for output in outputs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("options", "preempt_at"),
    [
        pytest.param({}, frozenset(), id="together"),
        pytest.param({"max_batched_tokens": 7}, frozenset(), id="chunked"),
        pytest.param({"max_batched_tokens": 7}, frozenset({1, 4, 9}), id="preempted"),
    ],
)
def test_in_any_mix(
    family: str,
    options: dict[str, object],
    preempt_at: frozenset[int],
    tiny_model_dir: TinyModelDir,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logprobs, "SLICE", 5)
    directory = tiny_model_dir(family)
    engine = make_engine(directory, **options)
    prompts = {i: prompt_of(length, i) for i, length in enumerate([1, 2, 17, 30, 24, 30])}
    num_top = {0: 1, 1: 0, 2: 2, 3: 20, 4: None, 5: 5}
    for i, prompt in prompts.items():
        params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True, prompt_logprobs=num_top[i])
        engine.add(AddRequest(i, prompt, params, n=1 + (i == 3)))
    outputs = run(engine, preempt_at=preempt_at)
    for i, prompt in prompts.items():
        wanted = num_top[i]
        if wanted is None:
            assert not any(output.prompt_logprobs for output in outputs[i, 0])
        else:
            check(directory, prompt, outputs[i, 0], wanted)
        tokens = [token for output in outputs[i, 0] for token in output.token_ids]
        assert tokens[:1] == generate(directory, prompt, 1) and len(tokens) == 4
    assert not any(output.prompt_logprobs for output in outputs[3, 1])
    assert engine.stats().preemptions > 0 or not preempt_at
