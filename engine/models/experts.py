"""The experts of a mixture: MLPs of which each token goes through a few, as one product for each expert that is wanted.

Called as transformers' experts are, of tokens, their experts and the weights of these. On a CPU tokens are sorted by
expert and torch does the products; with the Triton backend kernels do, which never ask the host who goes where. What is
kept of the intermediate numbers may be a slice: sizes are read off the weights, not off a configuration.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from engine.kernels.reference import (
    ACTIVATIONS,
    FP8_BLOCK,
    activate_mul,
    quantize_blocks,
    rounded_groups,
    spread_blocks,
)

PLAIN_FORM = {"is_concatenated": True, "is_transposed": False, "has_gate": True, "has_bias": False}
"""What transformers says of experts of the known form; where it says nothing, they have it."""


def activation_of(experts: Any) -> str | None:
    """The activation (`silu` or `gelu_tanh`) of experts of transformers, None if they are not of the known form.

    That is: `gate_up_proj` `[E, 2·I, H]`, the gate before what it opens, and `down_proj` `[E, H, I]`, no biases, and
    nothing else in between.
    """
    weights = dict(experts.named_parameters())
    if set(weights) != {"gate_up_proj", "down_proj"} or any(weight.dim() != 3 for weight in weights.values()):
        return None
    gate_up, down = weights["gate_up_proj"], weights["down_proj"]
    num_experts, hidden, inner = down.shape
    gate = getattr(getattr(experts, "_apply_gate", None), "__name__", "_default_apply_gate")
    if gate_up.shape != (num_experts, 2 * inner, hidden) or gate != "_default_apply_gate":
        return None
    if any(getattr(experts, name, value) != value for name, value in PLAIN_FORM.items()):
        return None
    return ACTIVATIONS.get(str(getattr(getattr(experts, "config", None), "hidden_act", None)))


def expert_places(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where a model has experts in tensors of all of them, of whatever form: parents and names."""
    return [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name == "experts" and any(weight.dim() == 3 for weight in child.parameters(recurse=False))
    ]


class GroupedExperts(nn.Module):
    """Experts in the dtype of their tokens, with the very tensors of transformers' own."""

    def __init__(self, gate_up: nn.Parameter, down: nn.Parameter, activation: str, *, uses_kernels: bool) -> None:
        """gate_up `[E, 2·I, H]`, down `[E, H, I]`. `uses_kernels`: those of Triton."""
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up, down
        self.activation = activation
        self.uses_kernels = uses_kernels

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states `[T, H]`, top_k_index and top_k_weights `[T, K]` → `[T, H]` in the dtype of hidden_states."""
        if self.uses_kernels:
            from engine.kernels import triton_experts  # an installation for CPUs has no triton

            given = _contiguous(hidden_states, top_k_index, top_k_weights)
            return triton_experts.run_experts(*given, self.gate_up_proj, self.down_proj, self.activation)
        if len(hidden_states) == 1:
            return self._one(hidden_states, top_k_index, top_k_weights)
        rows, order, counts = sort_by_expert(hidden_states, top_k_index, len(self.down_proj))
        ends = counts.cumsum(0, dtype=torch.int32)
        gate_up = F.grouped_mm(rows, self.gate_up_proj.transpose(1, 2), offs=ends)
        inner = activate_mul(gate_up, self.activation)
        return weighted_sum(F.grouped_mm(inner, self.down_proj.transpose(1, 2), offs=ends), order, top_k_weights)

    def _one(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Of one token, which needs no sorting."""
        hit = index[0].tolist()
        inner = activate_mul(torch.cat([F.linear(x, self.gate_up_proj[expert]) for expert in hit]), self.activation)
        outputs = [F.linear(row, self.down_proj[expert]) for row, expert in zip(inner, hit, strict=True)]
        return (weights.float() @ torch.stack(outputs).float()).to(x.dtype)


class Fp8Experts(nn.Module):
    """Experts whose weights are e4m3 in blocks of 128 by 128 with a scale each, as DeepSeek-R1's checkpoint has them.

    Activations get a scale for each token and 128 inputs. On a CPU plain torch computes the same, slowly.
    """

    gate_up_scale: torch.Tensor
    down_scale: torch.Tensor

    def __init__(
        self,
        gate_up: torch.Tensor,
        gate_up_scale: torch.Tensor,
        down: torch.Tensor,
        down_scale: torch.Tensor,
        activation: str,
    ) -> None:
        """gate_up e4m3 `[E, 2·I, H]`, gate first, its scales fp32 `[E, 2·⌈I/128⌉, ⌈H/128⌉]`; down e4m3 `[E, H, I]`,
        its scales fp32 `[E, ⌈H/128⌉, ⌈I/128⌉]`.

        Gate and up have blocks of their own. Contiguous. The activation is one of `ACTIVATIONS`' values.
        """
        super().__init__()
        num_experts, hidden, inner = down.shape
        rows, columns = (-(-side // FP8_BLOCK) for side in (hidden, inner))
        assert gate_up.shape == (num_experts, 2 * inner, hidden)
        assert gate_up_scale.shape == (num_experts, 2 * columns, rows)
        assert down_scale.shape == (num_experts, rows, columns)
        self.gate_up_proj = nn.Parameter(gate_up, requires_grad=False)
        self.down_proj = nn.Parameter(down, requires_grad=False)
        self.register_buffer("gate_up_scale", gate_up_scale)
        self.register_buffer("down_scale", down_scale)
        self.activation = activation
        self.uses_kernels = False
        """Of Triton also where there is no GPU."""
        self.rounds_rows = True

    @classmethod
    def quantized(cls, gate_up: torch.Tensor, down: torch.Tensor, activation: str) -> "Fp8Experts":
        """Of gate_up `[E, 2·I, H]` and down `[E, H, I]` in any wider dtype."""
        halves = [(quantize_blocks(gate), quantize_blocks(up)) for gate, up in (one.chunk(2) for one in gate_up)]
        downs = [quantize_blocks(one) for one in down]
        return cls(
            torch.stack([_joined(gate[0], up[0]) for gate, up in halves]),
            torch.stack([torch.cat([gate[1], up[1]]) for gate, up in halves]),
            torch.stack([numbers for numbers, _ in downs]),
            torch.stack([scale for _, scale in downs]),
            activation,
        )

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """See `GroupedExperts.forward`."""
        if self.rounds_rows and (self.uses_kernels or hidden_states.is_cuda):
            from engine.kernels import triton_experts  # an installation for CPUs has no triton

            gate_up, down = (self.gate_up_proj, self.gate_up_scale), (self.down_proj, self.down_scale)
            given = _contiguous(hidden_states, top_k_index, top_k_weights)
            return triton_experts.run_fp8_experts(*given, gate_up, down, self.activation)
        return self.plain_product(hidden_states, top_k_index, top_k_weights)

    def plain_product(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """What the kernels compute, but for their rounding of sums; the device is asked who goes where."""
        rows, order, counts = sort_by_expert(hidden_states, top_k_index, len(self.down_proj))
        parts = torch.split(rows, counts.tolist())
        outputs = [self._output(expert, part) for expert, part in enumerate(parts) if len(part)]
        return weighted_sum(torch.cat(outputs), order, top_k_weights)

    def unpacked(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One expert's weights in fp32: gate and up `[2·I, H]`, down `[H, I]`."""
        scales, numbers = self.gate_up_scale[expert].chunk(2), self.gate_up_proj[expert].float().chunk(2)
        gate_up = [part * spread_blocks(scale, part.shape) for part, scale in zip(numbers, scales, strict=True)]
        down = self.down_proj[expert].float()
        return torch.cat(gate_up), down * spread_blocks(self.down_scale[expert], down.shape)

    def _output(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        """Of one expert's rows `[n, H]`."""
        gate_up, down = self.unpacked(expert)
        inner = F.linear(self._rounded(rows), gate_up).to(rows.dtype)
        return F.linear(self._rounded(activate_mul(inner, self.activation)), down).to(rows.dtype)

    def _rounded(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows in fp32, as FP8 has them."""
        return rounded_groups(rows) if self.rounds_rows else rows.float()


def _contiguous(
    x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.contiguous(), index.contiguous(), weights.contiguous()


def _joined(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """One tensor of two in e4m3, which not every device joins as such."""
    return torch.cat([gate.view(torch.uint8), up.view(torch.uint8)]).view(gate.dtype)


def sort_by_expert(
    x: torch.Tensor, index: torch.Tensor, num_experts: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of x `[T, H]` and index `[T, K]`: rows `[T·K, H]` by expert, the pair that each row is of, rows of each expert.

    Pair p is token p // K with its expert p % K; of one expert, tokens stay in order.
    """
    pairs = index.reshape(-1)
    order = pairs.argsort(stable=True)
    return x[order // index.shape[1]], order, torch.bincount(pairs, minlength=num_experts)


def weighted_sum(rows: torch.Tensor, order: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`[T, H]`: each token's rows of `[T·K, H]`, which stand in `order`, times its weights `[T, K]`, summed in fp32."""
    pairs = torch.empty_like(rows)
    pairs[order] = rows
    tokens, choices = weights.shape
    summed = torch.bmm(weights.float()[:, None], pairs.view(tokens, choices, -1).float())
    return summed[:, 0].to(rows.dtype)
