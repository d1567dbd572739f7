"""The sampler's kernels against their references, and the sampler on them against sampling the long way."""

import itertools
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


WIDE_ROWS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float, int, float, float]] = {
    "flat": (lambda x: x * 0.01, 1.0, 0, 0.9, 0.0),
    "16 bits, so that hundreds are equal": (lambda x: (x * 3).bfloat16().float(), 2.0, 0, 0.95, 0.0),
    "all equal": (lambda x: x * 0 + 1.5, 1.0, 0, 0.5, 0.0),
    "all filters": (lambda x: x * 2, 1.5, 2, 0.99, 0.002),
    "masked, with fewer than top_k left": (lambda x: torch.where(x > 1, x, -torch.inf), 1.0, 3, 0.999, 0.0),
    "narrow": (lambda x: x * 6, 1.0, 6000, 0.95, 0.0),
    "greedy": (lambda x: x, 0.0, 26, 0.5, 0.5),
    "flat, nearly all kept": (lambda x: x * 0.01, 1.0, 0, 0.999, 0.0),
    "a top_k with fewer peaks": (lambda x: x * 3, 1.0, 26, 1.0, 0.0),
    "equal ones, and all filters": (lambda x: x.round(), 1.0, 3, 0.7, 0.5),
    "two values": (lambda x: (x > 0).float(), 1.0, 0, 0.8, 0.0),
    "masked, no other filter": (lambda x: torch.where(x > 1, x, -torch.inf), 1.0, 3, 1.0, 0.0),
    "narrow by top_p": (lambda x: x * 6, 0.7, 0, 0.95, 0.1),
    "only min_p": (lambda x: x, 1.0, 0, 1.0, 0.3),
    "one far above": (lambda x: torch.where(x == x.max(), 10.0, x * 1e-4), 1.0, 0, 0.9, 0.0),
    "one far below": (lambda x: torch.where(x == x.max(), -3e38, x), 1.0, 26, 1.0, 0.0),
}
"""What rows of normal numbers are turned into, their temperature, which part of the vocabulary `top_k` is (0: off),
`top_p` and `min_p`. The last two have more in a bin than is listed."""


def wide(vocab: int, count: int) -> None:
    """Thresholds where nearly all logits are candidates, beside rows with few: the first of `WIDE_ROWS`."""
    rows = dict(itertools.islice(WIDE_ROWS.items(), count))
    x = torch.randn(count, vocab, generator=torch.Generator().manual_seed(6))
    x = torch.stack([rule[0](row) for row, rule in zip(x, rows.values(), strict=True)])
    temperatures, top_ps, min_ps = (torch.tensor([rule[at] for rule in rows.values()]) for at in (1, 3, 4))
    top_ks = torch.tensor([vocab // part if part else 0 for _, _, part, _, _ in rows.values()])
    ours = triton_filter.thresholds(*there(x, temperatures, top_ks, top_ps, min_ps))
    bests, bounds = reference.thresholds(x, temperatures, top_ks, top_ps, min_ps)
    assert torch.equal(ours[0].cpu(), bests)
    differing = ((x >= ours[1].cpu()[:, None]) != (x >= bounds[:, None])).sum(dim=1).tolist()
    # In flat rows a logit more or less is a hundred thousandth, which a GPU's own exp may decide otherwise.
    most = 0 if DEVICE.type == "cpu" else 1
    assert max(differing) <= most, dict(zip(rows, differing, strict=True))


def nearly_whole() -> None:
    """A `top_p` that leaves out less than a token, which rounding may make more than there is: nothing is lost then."""
    x = torch.randn(12, 3000, generator=torch.Generator().manual_seed(3))
    is_likely = x > 0
    x = torch.where(is_likely, x * 0.01, -100.0)
    ones = torch.ones(len(x))
    top_ps = torch.full((len(x),), 1 - 2**-24)
    _, bounds = triton_filter.thresholds(*there(x, ones, torch.zeros(len(x), dtype=torch.int64), top_ps, ones * 0))
    assert torch.equal(x >= bounds.cpu()[:, None], is_likely)


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
    yield "sampler: thresholds, wide rows of 131,149 tokens", wide, (131_149, 7), {}
    yield "sampler: thresholds, wide rows of 12,007 tokens", wide, (12_007, len(WIDE_ROWS)), {}
    yield "sampler: thresholds of nearly the whole", nearly_whole, (), {}
    yield "sampler: constrained rows", constrained_rows, (), {}
    yield "sampler: warm-up", warm, (), {}
