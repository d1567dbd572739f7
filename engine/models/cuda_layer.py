"""A whole decoder layer for CUDA in ten launches; transformers' own has from 43 (Llama) to 68 (Gemma 2).

Norm of what was added last, projection, heads turned and written into the cache, attention and the joining of its
parts, projection, norm with addition, projection, activation, projection. What the last of them gives is added by the
next layer's first norm, or by the norm after all layers: one addition less for each layer. With linears in FP8 it is
eleven: norms and the activation give FP8 themselves, and only what attention gives is rounded apart.
"""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from engine.attention.context import attention_step_of
from engine.attention.triton import TritonAttention
from engine.kernels.reference import HeadNorms, Rounded
from engine.kernels.triton_layer import activate_mul, add_rms_norm
from engine.kernels.triton_rounded import activate_mul_rounded, add_rms_norm_rounded, rounds_alike
from engine.models.fp8 import Fp8Linear
from engine.models.fusion import FusedRMSNorm, Undo
from engine.models.layer_shape import LayerPlan, is_cross, plans_of, replace_each
from engine.models.split import RowParallel

logger = logging.getLogger(__name__)

MAX_HEAD_DIM = 256


class Pending:
    """What the newest layer gives to the residual stream, until the norm behind it adds it."""

    def __init__(self) -> None:
        self.delta: torch.Tensor | None = None
        """`[T, dim]`; None before the first layer."""
        self.norm: FusedRMSNorm | None = None
        """Of the delta, before it is added."""
        self.rounds = True
        """Whether norms and activations give FP8 themselves where a linear in FP8 reads them."""

    def add(
        self, residual: torch.Tensor, norm: FusedRMSNorm, reader: nn.Module | None = None
    ) -> torch.Tensor | Rounded:
        """Add the delta to `residual` `[T, dim]`, in place; the norm of the sum, as its reader takes it."""
        delta, self.delta = self.delta, None
        return normed_sum(delta, self.norm, residual, norm, rounds=self.rounds_for(reader))

    def rounds_for(self, reader: nn.Module | None) -> bool:
        """Whether a linear is to be given FP8: it would do nothing with its input but round it."""
        linear = reader.linear if isinstance(reader, RowParallel) else reader
        return self.rounds and isinstance(linear, Fp8Linear) and linear.rounds_rows


def normed_sum(
    delta: torch.Tensor | None,
    delta_norm: FusedRMSNorm | None,
    residual: torch.Tensor,
    norm: FusedRMSNorm,
    *,
    rounds: bool,
) -> torch.Tensor | Rounded:
    """Add a delta `[T, dim]`, normed first if it has a norm, to `residual`, in place; the norm, which may be in FP8."""
    x, target = (residual, None) if delta is None else (delta, residual)
    return (add_rms_norm_rounded if rounds else add_rms_norm)(
        x,
        target,
        norm.weight,
        norm.eps,
        plus_one=norm.plus_one,
        x_weight=None if delta_norm is None else delta_norm.weight,
    )


class CudaDecoderLayer(nn.Module):
    """Does what the layer it is made from does, in the model's dtype."""

    def __init__(self, plan: LayerPlan, pending: Pending, *, is_first: bool) -> None:
        super().__init__()
        self.qkv, self.output, self.gate_up, self.down = plan.qkv, plan.output, plan.gate_up, plan.down
        self._plan = plan
        self._pending = pending
        self._is_first = is_first
        q_norm, k_norm = plan.q_norm, plan.k_norm
        self._head_norms = None
        if q_norm is not None and k_norm is not None:
            self._head_norms = HeadNorms(q_norm.weight, k_norm.weight, q_norm.eps, q_norm.plus_one)

    def forward(
        self, hidden_states: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor], **_: object
    ) -> torch.Tensor:
        """hidden_states `[1, T, dim]`, cos and sin `[1, T, R]`; returns hidden_states, without the last delta."""
        plan, pending = self._plan, self._pending
        if self._is_first:
            pending.delta = pending.norm = None  # those of the forward before
        residual = hidden_states[0]
        normed = pending.add(residual, plan.input_norm, self.qkv)
        backend, cache = attention_step_of(plan.layer_idx)
        assert isinstance(backend, TritonAttention)
        cos, sin = position_embeddings
        attended = backend.run_packed(
            self.qkv(normed), cos[0], sin[0], cache, heads=plan.heads, scaling=plan.scaling, softcap=plan.softcap,
            window=plan.window, norms=self._head_norms,
        )  # fmt: skip
        delta, rounds = self.output(attended), pending.rounds_for(self.gate_up)
        normed = normed_sum(delta, plan.attention_out_norm, residual, plan.mlp_norm, rounds=rounds)
        activate = activate_mul_rounded if pending.rounds_for(self.down) else activate_mul
        pending.delta = self.down(activate(self.gate_up(normed), plan.activation))
        pending.norm = plan.mlp_out_norm
        return hidden_states


class WholeStream(nn.Module):
    """Stands around a layer that is not ours and reads the whole residual stream: adds what is pending before it."""

    def __init__(self, layer: nn.Module, pending: Pending) -> None:
        super().__init__()
        self.layer = layer
        self._pending = pending

    @property
    def cross_attn(self) -> nn.Module:
        """As of the layer itself."""
        found: nn.Module = self.layer.get_submodule("cross_attn")
        return found

    def forward(self, hidden_states: torch.Tensor, **options: Any) -> Any:
        """hidden_states `[1, T, dim]`; what the layer makes of them."""
        delta, self._pending.delta = self._pending.delta, None
        assert self._pending.norm is None, "no family has both a norm behind its MLP and layers of cross attention"
        return self.layer(hidden_states if delta is None else hidden_states + delta, **options)


class LastNorm(nn.Module):
    """The norm after all layers, which adds what the last of them gave."""

    def __init__(self, norm: FusedRMSNorm, pending: Pending) -> None:
        super().__init__()
        self._norm = norm
        self._pending = pending

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """hidden_states `[1, T, dim]`, changed; its norm."""
        normed = self._pending.add(hidden_states[0], self._norm)
        assert isinstance(normed, torch.Tensor), "nothing reads it that rounds"
        return normed.unsqueeze(0)


def _rounds_alike(plans: Sequence[LayerPlan | None]) -> bool:
    """Whether what gives FP8 is right here, where a layer is of FP8; surgery's own check does not round."""
    for plan in plans:
        if plan is not None and isinstance(plan.qkv, Fp8Linear) and isinstance(plan.gate_up, Fp8Linear):
            weight, inner = plan.mlp_norm.weight, plan.gate_up.out_features // 2
            if rounds_alike(len(weight), inner, plan.activation, weight.dtype, weight.device):
                return True
            logger.warning("norms and activations in FP8 are not, to the bit, what they are apart; they stay apart")
            return False
    return False


def replace_cuda_layers(model: Any, undo: Undo) -> int:
    """Put `CudaDecoderLayer`s in the place of a decoder's layers, if it knows them all; the number replaced."""
    decoder = model.get_decoder()
    plans = plans_of(decoder, MAX_HEAD_DIM)
    norm = getattr(decoder, "norm", None)
    if not isinstance(norm, FusedRMSNorm):
        return 0
    pending = Pending()
    pending.rounds = _rounds_alike(plans)
    first = plans[0] if plans else None
    count = replace_each(decoder, plans, lambda plan: CudaDecoderLayer(plan, pending, is_first=plan is first), undo)
    if count:
        for index, layer in enumerate(list(decoder.layers)):
            if is_cross(layer):
                decoder.layers[index] = WholeStream(layer, pending)
                undo.append(partial(decoder.layers.__setitem__, index, layer))
        decoder.norm = LastNorm(norm, pending)
        undo.append(partial(setattr, decoder, "norm", norm))
    return count
