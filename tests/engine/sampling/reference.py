"""Sampling the long way: what one request asks for, written to be obviously right, in float64 with whole sorts."""

import math
from collections.abc import Iterable

import numpy as np
import torch

from engine.sampling.sampler import PREFIX, uniform
from engine.sampling_params import SamplingParams

MIXES = {
    "greedy": SamplingParams(max_tokens=9, temperature=0),
    "plain": SamplingParams(max_tokens=9),
    "cold": SamplingParams(max_tokens=9, temperature=0.3),
    "hot": SamplingParams(max_tokens=9, temperature=2.0),
    "top_k": SamplingParams(max_tokens=9, top_k=7),
    "top_k_beyond_prefix": SamplingParams(max_tokens=9, top_k=PREFIX + 20, temperature=2.0),
    "top_p": SamplingParams(max_tokens=9, top_p=0.7),
    "top_p_beyond_prefix": SamplingParams(max_tokens=9, top_p=0.99, temperature=2.0),
    "min_p": SamplingParams(max_tokens=9, min_p=0.1),
    "all_filters": SamplingParams(max_tokens=9, top_k=20, top_p=0.8, min_p=0.02, temperature=1.3),
    "frequency": SamplingParams(max_tokens=9, frequency_penalty=1.5),
    "presence": SamplingParams(max_tokens=9, presence_penalty=-1.0, temperature=0.5),
    "repetition": SamplingParams(max_tokens=9, repetition_penalty=1.7),
    "greedy_penalised": SamplingParams(max_tokens=9, temperature=0, frequency_penalty=2, repetition_penalty=1.2),
    "bias": SamplingParams(max_tokens=9, logit_bias={7: 4.0, 9: -100.0}),
    "min_tokens": SamplingParams(max_tokens=9, min_tokens=8, stop_token_ids=(11, 12)),
    "all": SamplingParams(
        max_tokens=9, temperature=0.8, top_k=40, top_p=0.9, min_p=0.01, frequency_penalty=0.5,
        presence_penalty=0.5, repetition_penalty=1.1, logit_bias={4: 2.0}, min_tokens=5,
    ),
}  # fmt: skip


def reference_distribution(
    logits: torch.Tensor, prompt: list[int], generated: list[int], params: SamplingParams, eos: Iterable[int]
) -> torch.Tensor:
    """The distribution of the next token, float64 `[V]`, from raw logits `[V]`."""
    p = params
    scores = logits.double().clone()
    for token in {*prompt, *generated}:
        scores[token] = (
            scores[token] / p.repetition_penalty if scores[token] > 0 else scores[token] * p.repetition_penalty
        )
    for token in set(generated):
        scores[token] -= p.frequency_penalty * generated.count(token) + p.presence_penalty
    for token, bias in p.logit_bias.items():
        scores[token] += bias
    if len(generated) < p.min_tokens:
        for token in {*p.stop_token_ids} | (set() if p.ignore_eos else {*eos}):
            scores[token] = -math.inf
    if p.temperature == 0:
        return torch.nn.functional.one_hot(scores.argmax(), len(scores)).double()
    probabilities = (scores / p.temperature).softmax(-1)
    order = probabilities.argsort(descending=True, stable=True)
    if p.top_k:
        probabilities[order[p.top_k :]] = 0
    if p.top_p < 1:
        ordered = probabilities[order] / probabilities.sum()
        before = ordered.cumsum(-1) - ordered
        probabilities[order[before >= p.top_p]] = 0
    probabilities[probabilities < p.min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


def reference_draw(distribution: torch.Tensor, u: float) -> int:
    """The first token at which the cumulative distribution exceeds `u`."""
    return int(torch.searchsorted(distribution.cumsum(-1), torch.tensor([u], dtype=torch.float64), right=True)[0])


def noise(seed: int, position: int) -> float:
    """The number that decides the token at `position`, the prompt included."""
    return float(uniform(np.array([seed]), np.array([position]))[0])
