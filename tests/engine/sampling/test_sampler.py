"""The sampler against a straightforward one, and against exact distributions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.noise import derive_seed, gumbel, keys, uniform
from engine.sampling.sampler import Sampler, draw
from engine.sampling_params import SamplingParams
from engine.scheduling.sequence import Sequence
from tests.engine.sampling.reference import MIXES, noise, reference_distribution, reference_draw

CPU = torch.device("cpu")
VOCAB = 300
EOS = frozenset({5})


def sequence(params: SamplingParams, *, slot: int = 0, seed: int = 0, prompt: list[int] | None = None) -> Sequence:
    prompt = prompt or [1, 2, 3]
    made = Sequence(request_id=slot, prompt_token_ids=prompt, params=params, seed=seed, max_len=1000, eos_token_ids=EOS)
    made.slot = slot
    return made


def distribution_of(logits: torch.Tensor, seq: Sequence) -> torch.Tensor:
    prompt, generated = seq.token_ids[: seq.num_prompt_tokens], seq.token_ids[seq.num_prompt_tokens :]
    return reference_distribution(logits, prompt, generated, seq.params, seq.eos_token_ids)


def test_mixed_batch_draws_what_each_row_draws_in_the_long_way() -> None:
    generator = torch.Generator().manual_seed(1)
    sampler = Sampler(max_num_seqs=len(MIXES), vocab_size=VOCAB, device=CPU)
    sequences = [sequence(p, slot=i, seed=i * 77 - 5) for i, p in enumerate(MIXES.values())]
    for _ in range(8):
        logits = torch.randn(len(MIXES), VOCAB, generator=generator) * 3
        sampled = sampler.sample(logits, sequences).result()
        for row, seq in enumerate(sequences):
            expected = reference_draw(distribution_of(logits[row], seq), noise(seq.seed, seq.num_tokens))
            assert sampled.token_ids[row] == expected, (list(MIXES)[row], seq.num_generated)
            seq.token_ids.append(expected)


def test_neighbours_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(len(MIXES), VOCAB, generator=generator) * 2
    together = (
        Sampler(max_num_seqs=32, vocab_size=VOCAB, device=CPU)
        .sample(logits, [sequence(p, slot=i, seed=i) for i, p in enumerate(MIXES.values())])
        .result()
    )
    for row, params in enumerate(MIXES.values()):
        one = Sampler(max_num_seqs=32, vocab_size=VOCAB, device=CPU)
        seq = sequence(params, slot=9, seed=row)
        assert one.sample(logits[row : row + 1], [seq]).result().token_ids == [together.token_ids[row]]


def test_a_recycled_slot_forgets_its_former_tenant() -> None:
    sampler = Sampler(max_num_seqs=1, vocab_size=VOCAB, device=CPU)
    params = SamplingParams(max_tokens=9, temperature=0, frequency_penalty=2.0, repetition_penalty=5.0)
    logits = torch.zeros(1, VOCAB)
    logits[0, 40], logits[0, 41] = 1.0, 0.9
    former = sequence(params, prompt=[40])
    former.token_ids += [40, 40]
    assert sampler.sample(logits, [former]).result().token_ids == [41]
    newcomer = sequence(params)
    newcomer.request_id = 99
    assert sampler.sample(logits, [newcomer]).result().token_ids == [40]


@pytest.mark.parametrize("name", [name for name, params in MIXES.items() if params.temperature > 0])
def test_frequencies_are_those_of_the_exact_distribution(name: str) -> None:
    """Chi-square over 20,000 draws; the bound is far in the tail, and the draws are fixed by their seeds."""
    draws, vocab = 20_000, VOCAB
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * 2
    sampler = Sampler(max_num_seqs=1, vocab_size=vocab, device=CPU)
    sequences = [sequence(MIXES[name], seed=seed) for seed in range(draws)]
    for seq in sequences:  # one sequence, as far as the sampler can tell, with some tokens already generated
        seq.request_id = 0
        seq.token_ids += [7, 7, 4]
    sampled = sampler.sample(logits.expand(draws, vocab), sequences).result().token_ids
    expected = distribution_of(logits, sequences[0]).numpy() * draws
    observed = np.bincount(sampled, minlength=vocab)
    assert observed[expected == 0].sum() == 0
    likely = expected >= 5
    chi_square = ((observed[likely] - expected[likely]) ** 2 / expected[likely]).sum()
    freedom = likely.sum() - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_ties_at_a_threshold_are_kept_together() -> None:
    sampler = Sampler(max_num_seqs=1, vocab_size=VOCAB, device=CPU)
    logits = torch.full((400, VOCAB), -50.0)
    logits[:, 10:14] = 1.0
    params = SamplingParams(max_tokens=9, top_k=2)
    sampled = sampler.sample(logits, [sequence(params, seed=seed) for seed in range(400)]).result().token_ids
    assert set(sampled) == {10, 11, 12, 13}


def test_draw_never_takes_a_token_without_weight() -> None:
    weights = torch.zeros(6, 1000)
    weights[:, 513] = 1e-30
    weights[3:, 700] = 1.0
    u = torch.tensor([0.0, 0.5, 1 - 2**-53, 1e-9, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(weights, u).tolist() == [513, 513, 513, 700, 700, 700]


def test_uniform_is_uniform_and_independent_of_its_company() -> None:
    seeds, positions = np.meshgrid(np.arange(-100, 100), np.arange(200))
    u = uniform(seeds.ravel(), positions.ravel())
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, bins=50, range=(0, 1))[0]
    assert ((counts - 800) ** 2 / 800).sum() < 49 + 5 * math.sqrt(98)
    assert uniform(np.array([-3]), np.array([7]))[0] == u.reshape(200, 200)[7, 97]
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02


def test_the_highest_of_scores_with_gumbel_noise_has_the_softmax_distribution() -> None:
    """What the race of `engine.kernels.triton_sampler` stands on; its noise is held to this function's elsewhere."""
    draws, scores = 40_000, np.array([3.0, 2.0, 0.0, 0.0, -3.0, -5.0])
    seeds = np.arange(draws)
    won = (gumbel(keys(seeds % 1000, seeds // 1000), len(scores)) + scores).argmax(axis=1)
    expected = np.exp(scores) / np.exp(scores).sum() * draws
    chi_square = ((np.bincount(won, minlength=len(scores)) - expected) ** 2 / expected).sum()
    assert chi_square < 5 + 5 * math.sqrt(2 * 5)


def test_derived_seeds_differ() -> None:
    assert derive_seed(5, 0) == 5
    assert len({derive_seed(seed, index) for seed in (-1, 0, 1, 2**62) for index in range(16)}) == 64


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(4))
    base = SamplingParams(max_tokens=9, temperature=0.5, top_k=3, logit_bias={8: 50.0})
    sequences = [sequence(replace(base, logprobs=wanted), slot=i) for i, wanted in enumerate((0, 4, None))]
    sampled = Sampler(max_num_seqs=4, vocab_size=VOCAB, device=CPU).sample(logits, sequences).result()
    exact = logits.double().log_softmax(-1)
    for row in (0, 1):
        got = sampled.logprobs[row]
        assert got is not None and sampled.token_ids[row] == 8
        assert got.logprob == pytest.approx(float(exact[row, 8]), abs=1e-5)
        best = exact[row].topk(4)
        assert got.top_ids == best.indices.tolist()[: (0, 4)[row]]
        assert got.top_logprobs == pytest.approx(best.values.tolist()[: (0, 4)[row]], abs=1e-5)
    assert sampled.logprobs[2] is None


def test_non_finite_logits_are_told() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[1, 3] = math.nan
    logits[2] = -math.inf
    sampler = Sampler(max_num_seqs=3, vocab_size=VOCAB, device=CPU)
    for params in (MIXES["greedy"], MIXES["all"]):
        rows = [sequence(params, slot=i) for i in range(3)]
        assert sampler.sample(logits, rows).result().finite == [True, False, False]


def test_values_too_small_for_fp32_are_the_limit_they_stand_for() -> None:
    """A temperature that is 0 in fp32, and one that makes logits overflow, are greedy; so is no row made of NaN."""
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5)) * 9
    best = int(logits.argmax())
    for temperature in (1e-320, 5e-324, 1e-45, 1e-40, 1e-38, 1e-30):
        sampler = Sampler(max_num_seqs=1, vocab_size=VOCAB, device=CPU)
        params = SamplingParams(max_tokens=9, temperature=temperature)
        assert sampler.sample(logits, [sequence(params)]).result().token_ids == [best], temperature
    known = int(logits.argsort(descending=True)[0, 3])
    for repetition in (1e-320, 1e-45, 1e-38):
        sampler = Sampler(max_num_seqs=1, vocab_size=VOCAB, device=CPU)
        params = SamplingParams(max_tokens=9, repetition_penalty=repetition)
        assert sampler.sample(logits, [sequence(params, prompt=[known])]).result().token_ids == [known], repetition


def test_a_request_id_that_comes_again_is_counted_afresh() -> None:
    sampler = Sampler(max_num_seqs=1, vocab_size=VOCAB, device=CPU)
    params = SamplingParams(max_tokens=9, temperature=0, frequency_penalty=2.0)
    logits = torch.zeros(1, VOCAB)
    logits[0, 40], logits[0, 41] = 1.0, 0.9
    former, newcomer = sequence(params), sequence(params)
    former.token_ids += [40]
    newcomer.token_ids += [41]
    assert sampler.sample(logits, [former]).result().token_ids == [41]
    assert sampler.sample(logits, [newcomer]).result().token_ids == [40]
