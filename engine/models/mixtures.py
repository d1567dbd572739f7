"""Surgery on mixtures of experts: experts of the form that most of transformers' classes share, and their routers."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from engine.kernels.reference import RouterRule
from engine.models.experts import Fp8Experts, GroupedExperts, activation_of, expert_places
from engine.models.fusion import Undo, replace_child

BY_SIGMOID = frozenset({"DeepseekV3TopkRouter", "Dots1TopkRouter", "Glm4MoeLiteTopkRouter", "Glm4MoeTopkRouter"})
BY_SOFTMAX = frozenset({"MixtralTopKRouter", "OlmoeTopKRouter", "Qwen2MoeTopKRouter", "Qwen3MoeTopKRouter"})


class FusedRouter(nn.Module):
    """A router whose choices are made in one launch of Triton. Its logits are those of transformers' own, in fp32."""

    def __init__(self, weight: nn.Parameter, bias: torch.Tensor | None, rule: RouterRule) -> None:
        """weight `[E, H]`; bias `[E]`, for choosing alone."""
        super().__init__()
        self.weight = weight
        self.register_buffer("e_score_correction_bias", bias)
        self.rule = rule

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """hidden_states `[..., H]` → logits fp32 `[T, E]`, weights fp32 `[T, K]`, experts int64 `[T, K]`."""
        from engine.kernels.triton_router import choose_experts  # an installation for CPUs has no triton

        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        if rows.is_cuda and rows.dtype == self.weight.dtype != torch.float32:
            logits = torch.mm(rows, self.weight.t(), out_dtype=torch.float32)  # products of 16 bits are exact in it
        else:
            logits = F.linear(rows.float(), self.weight.float())
        index, weights = choose_experts(logits, self.get_buffer("e_score_correction_bias"), self.rule)
        return logits, weights, index


def rule_of(router: Any) -> RouterRule | None:
    """The rule of a router of transformers, None if it is not known."""
    name = type(router).__name__
    if name in BY_SIGMOID:
        return RouterRule(
            choices=router.top_k, sigmoid=True, normalises=router.norm_topk_prob, epsilon=1e-20,
            scaling=router.routed_scaling_factor, groups=router.num_group, top_groups=router.topk_group,
        )  # fmt: skip
    if name in BY_SOFTMAX:
        return RouterRule(choices=router.top_k, sigmoid=False, normalises=getattr(router, "norm_topk_prob", True))
    return None


def fuse_routers(model: Any, undo: Undo) -> int:
    """Put a `FusedRouter` in the place of each router whose rule is known; the number replaced."""
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            rule = rule_of(child)
            if rule is not None:
                bias = getattr(child, "e_score_correction_bias", None)
                replace_child(parent, name, FusedRouter(child.weight, bias, rule), undo)
                count += 1
    return count


def group_experts(model: Any, undo: Undo, *, uses_kernels: bool) -> int:
    """Put `GroupedExperts` in the place of a model's experts where they have that form; the number replaced."""
    count = 0
    for parent, name in expert_places(model):
        experts: Any = getattr(parent, name)
        if isinstance(experts, Fp8Experts):
            if uses_kernels and not experts.down_proj.is_cuda:  # else kernels it is
                experts.uses_kernels = True
                undo.append(partial(setattr, experts, "uses_kernels", False))
                count += 1
        elif (activation := activation_of(experts)) is not None:
            grouped = GroupedExperts(experts.gate_up_proj, experts.down_proj, activation, uses_kernels=uses_kernels)
            replace_child(parent, name, grouped, undo)
            count += 1
    return count
