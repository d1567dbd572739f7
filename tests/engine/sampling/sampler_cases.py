"""The sampler's kernels against their references, and the sampler on them against sampling the long way."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from engine.kernels import reference, triton_filter, triton_sampler
from engine.kernels.triton_sampler import TILE
from engine.noise import gumbel, keys
from engine.sampling.device_sampler import DeviceSampler
from engine.sampling_params import SamplingParams
from engine.scheduling.sequence import Sequence
from tests.engine.fake_grammar import FakeGrammar, allowed_tokens
from tests.engine.sampling.reference import MIXES, reference_distribution

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
DTYPE = torch.float16 if DEVICE.type == "cpu" else torch.bfloat16
EOS = frozenset({5})
ROUNDS = 4


def there(*tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


def sequence(params: SamplingParams, slot: int, seed: int = 0, grammar: FakeGrammar | None = None) -> Sequence:
    made = Sequence(request_id=slot, prompt_token_ids=[1, 2, 3], params=params, seed=seed, max_len=1000,
                    eos_token_ids=EOS, grammar=grammar)  # fmt: skip
    made.slot = slot
    return made


def raced(logits: torch.Tensor, seq: Sequence) -> int:
    """The token that should win: noise is the only thing that the long way shares with the kernels."""
    prompt, generated = seq.token_ids[: seq.num_prompt_tokens], seq.token_ids[seq.num_prompt_tokens :]
    chances = reference_distribution(logits, prompt, generated, seq.params, seq.eos_token_ids)
    key = keys(np.array([seq.seed]), np.array([seq.num_tokens]))
    return int((chances.log() + torch.from_numpy(gumbel(key, len(logits)))[0]).argmax())


def mixed_batch(vocab: int) -> None:
    """Every mix of parameters beside every other, over some rounds, in logits of several tiles."""
    sampler = DeviceSampler(max_num_seqs=len(MIXES) + 2, vocab_size=vocab, device=DEVICE)
    last_tokens = torch.zeros(len(MIXES) + 2, dtype=torch.int64, device=DEVICE)
    sequences = [sequence(params, slot + 1, slot * 77 - 5) for slot, params in enumerate(MIXES.values())]
    generator = torch.Generator().manual_seed(1)
    for _ in range(ROUNDS):
        logits = torch.randn(len(MIXES), vocab, generator=generator) * 3
        pending = sampler.sample(logits.to(DEVICE), sequences, last_tokens)
        sampled = pending.result()
        assert sampled.token_ids == pending.token_ids.tolist() == last_tokens[1 : 1 + len(MIXES)].tolist()
        assert all(sampled.finite)
        for row, seq in enumerate(sequences):
            expected = raced(logits[row], seq)
            assert sampled.token_ids[row] == expected, (list(MIXES)[row], sampled.token_ids[row], expected)
            seq.token_ids.append(expected)


def plain_greedy(dtype: torch.dtype) -> None:
    """The largest, the first of equals, and rows that are broken."""
    logits = torch.randn(6, 2 * TILE + 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    logits[0, 1500] = logits[0, 40] = logits[0, 2049] = 30.0
    logits[2, 3], logits[3, 4] = torch.nan, torch.inf
    logits[4], logits[5] = -torch.inf, torch.nan
    sampler = DeviceSampler(max_num_seqs=6, vocab_size=logits.shape[1], device=DEVICE)
    last_tokens = torch.zeros(6, dtype=torch.int64, device=DEVICE)
    for params in (MIXES["greedy"], MIXES["all"]):
        rows = [sequence(params, slot) for slot in range(6)]
        sampled = sampler.sample(logits.to(DEVICE), rows, last_tokens).result()
        assert sampled.finite == [True, True, False, False, False, False]
        # Whatever a broken row's token is, the next step may look its embedding up.
        assert all(0 <= token < logits.shape[1] for token in last_tokens.tolist())
        if params is MIXES["greedy"]:
            assert sampled.token_ids[:2] == [40, int(logits[1].argmax())]
            assert sampled.token_ids[2] == int(logits[2].nan_to_num(-torch.inf).argmax()), "a NaN has won"


def bisected(vocab: int, spread: float) -> None:
    """Thresholds, with ties and with tokens that cannot come."""
    x = torch.randn(10, vocab, generator=torch.Generator().manual_seed(vocab)) * spread
    x[1] = x[1].round()
    x[2, ::2] = -torch.inf
    x[3] = 1.0
    x[4] = torch.where(torch.arange(vocab) == vocab - 1, 0.0, -torch.inf)
    temperatures = torch.tensor([1.0, 0.7, 1.3, 1.0, 1.0, 0.0, 2.0, 1e-30, 1.0, 1.0])
    top_ks = torch.tensor([7, 5, 0, 2, 3, 4, vocab + 5, 3, 1, 30])
    top_ps = torch.tensor([1.0, 0.6, 0.9, 0.5, 0.5, 0.5, 0.99, 0.9, 1.0, 0.8])
    min_ps = torch.tensor([0.0, 0.0, 0.2, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    ours = triton_filter.thresholds(*there(x, temperatures, top_ks, top_ps, min_ps))
    bests, bounds = reference.thresholds(x, temperatures, top_ks, top_ps, min_ps)
    assert torch.equal(ours[0].cpu(), bests)
    assert torch.equal(x >= ours[1].cpu()[:, None], x >= bounds[:, None])


def adjusted(vocab: int, dtype: torch.dtype) -> None:
    """Penalties by slot, rows of a bitmask."""
    torch.manual_seed(vocab)
    logits, slots = torch.randn(4, vocab).to(dtype), torch.tensor([5, 0, 3, 1])
    penalties = torch.tensor([[1.3, 1.0, 0.8, 2.0], [0.5, 0.0, -1.0, 2.0], [0.0, 0.7, 1.0, -2.0]])
    counts, in_prompt = torch.randint(0, 3, (6, vocab), dtype=torch.int32), torch.rand(6, vocab) < 0.3
    words = torch.randint(-(2**31), 2**31 - 1, (2, -(-vocab // 32)), dtype=torch.int32)
    mask_rows = torch.tensor([-1, 1, -1, 0])

    def options(place: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
        placed = [place(part) for part in (counts, in_prompt, mask_rows, words)]
        return {"penalties": tuple(map(place, penalties)),
                **dict(zip(("counts", "in_prompt", "mask_rows", "words"), placed, strict=True))}  # fmt: skip

    ours = triton_sampler.adjust(*there(logits, slots), **options(lambda part: part.to(DEVICE)))
    theirs = reference.adjust(logits, slots, **options(lambda part: part))
    torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-6, atol=1e-6)


def drawn(vocab: int) -> None:
    """The race itself, with noise that must be the reference's."""
    x = torch.randn(40, vocab, generator=torch.Generator().manual_seed(3))
    row_keys = torch.from_numpy(keys(np.arange(40) - 20, np.arange(40) * 7).view(np.int64))
    hot = (torch.linspace(0, 2, 40), row_keys, x.max(dim=1).values, x.median(dim=1).values)
    slots = torch.randperm(64)[:40]
    ours, theirs = torch.zeros(64, dtype=torch.int64, device=DEVICE), torch.zeros(64, dtype=torch.int64)
    token_ids, packed = triton_sampler.race(*there(x, slots), ours, hot=tuple(there(*hot)))  # type: ignore[arg-type]
    expected, also = reference.race(x, slots, theirs, hot=hot)
    assert torch.equal(token_ids.cpu(), expected) and torch.equal(packed.cpu(), also)
    assert torch.equal(ours.cpu(), theirs)


def constrained_rows() -> None:
    """Constrained rows beside free ones, with logprobs in some."""
    vocab = 32  # a fake grammar fills one word
    sampler = DeviceSampler(max_num_seqs=4, vocab_size=vocab, device=DEVICE)
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(4))
    hot = SamplingParams(max_tokens=9, logprobs=3)
    rows = [sequence(MIXES["greedy"], 0), sequence(MIXES["greedy"], 1, grammar=FakeGrammar("1")),
            sequence(hot, 2, grammar=FakeGrammar("2")), sequence(replace(hot, logprobs=None), 3)]  # fmt: skip
    sampled = sampler.sample(logits.to(DEVICE), rows, torch.zeros(4, dtype=torch.int64, device=DEVICE)).result()
    assert sampled.token_ids[0] == int(logits[0].argmax())
    allowed = allowed_tokens("1", 0)
    assert sampled.token_ids[1] == max(allowed, key=lambda token: float(logits[1, token]))
    assert sampled.token_ids[2] in allowed_tokens("2", 0)
    got = sampled.logprobs[2]
    exact = logits[2].log_softmax(-1)
    assert got is not None and abs(got.logprob - float(exact[sampled.token_ids[2]])) < 1e-4
    assert got.top_ids == exact.topk(3).indices.tolist()
    assert [sampled.logprobs[row] for row in (0, 1, 3)] == [None] * 3


def warm() -> None:
    """What the kernels are run on at load leaves nothing behind."""
    sampler = DeviceSampler(max_num_seqs=2, vocab_size=1500, device=DEVICE)
    sampler.warm_up(DTYPE)
    assert not sampler._counts.counts.any() and not sampler._counts.in_prompt.any()


def sampler_cases() -> Iterator[tuple[str, Callable[..., None], tuple[Any, ...], dict[str, Any]]]:
    """Name, check, arguments."""
    for vocab in (300, 2500):
        yield f"sampler: every mix, {vocab} tokens", mixed_batch, (vocab,), {}
        yield f"sampler: noise, {vocab} tokens", drawn, (vocab,), {}
    for dtype in (torch.float32, torch.float16):
        yield f"sampler: greedy, {dtype}", plain_greedy, (dtype,), {}
        yield f"sampler: penalties and bitmask, {dtype}", adjusted, (1100, dtype), {}
    for vocab, spread in ((50, 1.0), (1024, 4.0), (2500, 0.01)):
        yield f"sampler: thresholds, {vocab} tokens", bisected, (vocab, spread), {}
    yield "sampler: constrained rows", constrained_rows, (), {}
    yield "sampler: warm-up", warm, (), {}
