"""Which experts a token goes to, and with what weights, in one launch: a program for each token.

It reads the E logits of a token once and writes K numbers and K weights; transformers' own takes about twenty
launches. The rules are those of DeepSeek-V3 (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 2.1.2): experts
are ranked by their scores with a bias that counts for nothing else, only within the groups whose two best add up to
most; and those of routers by softmax, which are the same with one group and without a bias.
"""

import torch
import triton
import triton.language as tl

from engine.kernels.launches import launch, power_of_2
from engine.kernels.reference import RouterRule


@triton.jit
def _best_groups(ranked, inside, TOP: tl.constexpr, PAD: tl.constexpr):
    """Whether each of the groups `[PAD]` of ranks `[PAD, experts]` is among those whose two best add up to most."""
    group = tl.arange(0, PAD)
    best = tl.max(ranked, 1)
    is_best = inside == tl.argmax(ranked, 1, tie_break_left=True)[:, None]
    value = best + tl.max(tl.where(is_best, -float("inf"), ranked), 1)
    kept = tl.zeros([PAD], tl.int32)
    for _ in range(TOP):
        is_next = group == tl.argmax(tl.where(kept > 0, -float("inf"), value), 0, tie_break_left=True)
        kept = tl.where(is_next, 1, kept)
    return kept > 0


@triton.jit
def choose_kernel(
    logits, bias, index, weights, num_experts, epsilon, scaling,
    SIGMOID: tl.constexpr, BIAS: tl.constexpr, NORMALISE: tl.constexpr, CHOICES: tl.constexpr,
    CHOICES_PAD: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUPS_PAD: tl.constexpr,
    SIZE: tl.constexpr, SIZE_PAD: tl.constexpr,
):  # fmt: skip
    """Grid (tokens). See `choose_experts`."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS_PAD)[:, None]
    inside = tl.arange(0, SIZE_PAD)[None, :]
    number = group * SIZE + inside
    real = (group < GROUPS) & (inside < SIZE)
    x = tl.load(logits + token * num_experts + number, mask=real, other=-float("inf")).to(tl.float32)
    if SIGMOID:
        score = tl.sigmoid(x)
    else:
        powers = tl.exp(x - tl.max(tl.max(x, 1), 0))
        score = powers / tl.sum(tl.sum(powers, 1), 0)
    ranked = score
    if BIAS:
        ranked += tl.load(bias + number, mask=real, other=0.0).to(tl.float32)
    # A NaN is chosen last, if all are NaNs the first expert, so that no number is out of range.
    ranked = tl.where(real & (ranked == ranked), ranked, -float("inf"))
    if TOP_GROUPS < GROUPS:
        ranked = tl.where(_best_groups(ranked, inside, TOP_GROUPS, GROUPS_PAD)[:, None], ranked, -float("inf"))
    ranked = tl.reshape(ranked, [GROUPS_PAD * SIZE_PAD])
    score = tl.reshape(score, [GROUPS_PAD * SIZE_PAD])
    number = tl.reshape(number + tl.zeros([GROUPS_PAD, SIZE_PAD], tl.int32), [GROUPS_PAD * SIZE_PAD])
    place = tl.arange(0, GROUPS_PAD * SIZE_PAD)
    lane = tl.arange(0, CHOICES_PAD)
    chosen = tl.zeros([CHOICES_PAD], tl.int32)
    weight = tl.zeros([CHOICES_PAD], tl.float32)
    for choice in range(CHOICES):
        is_best = place == tl.argmax(ranked, 0, tie_break_left=True)
        chosen = tl.where(lane == choice, tl.sum(tl.where(is_best, number, 0), 0), chosen)
        weight = tl.where(lane == choice, tl.sum(tl.where(is_best, score, 0.0), 0), weight)
        ranked = tl.where(is_best, -float("inf"), ranked)
    if NORMALISE:
        weight = tl.div_rn(weight, tl.sum(weight, 0) + epsilon + tl.zeros([CHOICES_PAD], tl.float32))
    tl.store(index + token * CHOICES + lane, chosen.to(tl.int64), mask=lane < CHOICES)
    tl.store(weights + token * CHOICES + lane, weight * scaling, mask=lane < CHOICES)


def choose_experts(
    logits: torch.Tensor, bias: torch.Tensor | None, rule: RouterRule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of logits `[T, E]`, contiguous, and a bias `[E]`: experts int64 `[T, K]`, best first, and weights fp32 `[T, K]`.

    Of experts that rank the same the first is chosen. Where logits are NaN so are weights.
    """
    tokens, num_experts = logits.shape
    size = num_experts // rule.groups
    index = torch.empty(tokens, rule.choices, dtype=torch.int64, device=logits.device)
    weights = torch.empty(tokens, rule.choices, dtype=torch.float32, device=logits.device)
    groups_pad, size_pad = power_of_2(rule.groups), power_of_2(size)
    launch(
        choose_kernel, (tokens,),
        logits, logits if bias is None else bias, index, weights, num_experts, rule.epsilon, rule.scaling,
        SIGMOID=rule.sigmoid, BIAS=bias is not None, NORMALISE=rule.normalises, CHOICES=rule.choices,
        CHOICES_PAD=power_of_2(rule.choices), GROUPS=rule.groups, TOP_GROUPS=rule.top_groups,
        GROUPS_PAD=groups_pad, SIZE=size, SIZE_PAD=size_pad, num_warps=max(1, min(4, groups_pad * size_pad // 256)),
    )  # fmt: skip
    return index, weights
