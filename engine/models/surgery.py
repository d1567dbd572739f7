"""A loaded model made ready: seen to answer rightly, then operated on, each change held against the model before."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from engine.attention.context import AttentionBackend, attention_step
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.device.ranks import Ranks
from engine.kernels.cpu import CpuKernels
from engine.kernels.launches import counting_launches
from engine.models.cpu_layer import replace_layers
from engine.models.fp8 import whole_rows
from engine.models.fusion import PackedHead, Undo, apply_checked, fuse_norms, merge_linears, pack_linears
from engine.models.layer_shape import is_cross
from engine.models.load_check import CHECK_TOKENS, CheckBatches, check_batching
from engine.models.loaded import LoadedModel
from engine.models.mixtures import fuse_routers, group_experts
from engine.models.quantized import QuantizedLinear

logger = logging.getLogger(__name__)

Logits = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of token ids `[T]` at positions `[T]`, those `[R, V]` of an index `[R]`."""
TOLERANCE = {torch.float32: 1e-4}
"""How far logits may move, in parts of their spread."""
QUANTIZED_TOLERANCE = 2e-3
"""Where activations are rounded to 16 bits on the way into each product."""
ROUGH_TOLERANCE = 0.25


def tolerance_of(model: nn.Module, dtype: torch.dtype) -> float:
    """How far the logits of a model may move by a change to it, in parts of their spread."""
    rounds = any(isinstance(module, QuantizedLinear) for module in model.modules())
    return QUANTIZED_TOLERANCE if rounds else TOLERANCE.get(dtype, ROUGH_TOLERANCE)


class Surgery:
    """One model on the table, with a small cache of its own to run check batches in."""

    def __init__(
        self,
        loaded: LoadedModel,
        logits: Logits,
        backend: AttentionBackend,
        caches: dict[int, LayerCache],
        block_size: int,
        ranks: Ranks | None = None,
    ) -> None:
        """The `caches` hold `CHECK_BLOCKS` blocks. All `ranks` operate on their parts together."""
        self._ranks = ranks
        self._loaded, self._model = loaded, loaded.model
        self._logits, self._backend, self._caches = logits, backend, caches
        self._dtype: torch.dtype = loaded.model.dtype
        self._device: torch.device = loaded.model.device
        self._batches = CheckBatches(loaded.vocab_size, block_size, self._device)
        self._positions = torch.arange(CHECK_TOKENS, device=self._device)
        self._done: dict[str, int | None] = {}
        self._known: torch.Tensor | None = None
        """The outcome with the model as it is now, where it has been computed."""
        self.notes: list[str] = []
        """What the operator should know."""
        self.launches = 0
        """Of a layer in a decoding step, where layers were replaced for a GPU."""

    @property
    def changes(self) -> list[str]:
        """What was changed, by name, and how where that was measured."""
        measured = {str(getattr(module, "numerics", "")) for module in self._model.modules()} - {""}
        return [*(name for name, count in self._done.items() if count), *sorted(measured)]

    @torch.inference_mode()
    def check(self) -> None:
        """Raise ModelLoadError unless the model can serve."""
        found = self._answers()
        check_batching(self._loaded.architecture, found[CHECK_TOKENS - 1], found[CHECK_TOKENS])
        if not self._loaded.fp8_linears:  # else changes are held against other numbers: `whole_rows`
            self._known = found

    @torch.inference_mode()
    def operate(self, kernels: CpuKernels | None) -> None:
        """Make every change that fits this model, its device and its attention."""
        layers = self._backend.serves_layers
        before = self._launches() if layers == "cuda" else 0
        self._change("merged projections", lambda undo: merge_linears(self._model, undo))
        self._change("fused norms", lambda undo: fuse_norms(self._model, undo))
        if layers == "cuda" or self._device.type == "cpu":  # elsewhere transformers' own do not ask the host
            grouped = partial(group_experts, self._model, uses_kernels=layers == "cuda")
            self._change("grouped experts", grouped)
        if layers == "cuda":
            self._change("fused routers", lambda undo: fuse_routers(self._model, undo))
        if self._device.type == "cpu" and layers != "cuda":
            self._pack()
        if layers == "cpu" and kernels is not None:
            self._change("CPU layers", lambda undo: replace_layers(self._model, kernels, undo))
        if layers == "cuda":
            from engine.models.cuda_layer import replace_cuda_layers  # an installation for CPUs has no triton

            self._change("CUDA layers", lambda undo: replace_cuda_layers(self._model, undo))
            if self._device.type != "cuda" or self._dtype in (torch.bfloat16, torch.float16):
                from engine.models.small_products import use_small_products

                self._change("small products", lambda undo: use_small_products(self._model, undo, self._ranks))
        logger.info("%s", ", ".join(f"{count} {name}" for name, count in self._done.items() if count))
        if before:
            self.launches = self._launches()
            logger.info("launches of a layer: %d; of transformers' own: %d", self.launches, before)

    def _run(self, batch: ForwardBatch, index: torch.Tensor) -> torch.Tensor:
        with attention_step(self._backend, self._caches, batch):
            return self._logits(batch.input_ids, batch.positions, index).float()

    def _answers(self) -> torch.Tensor:
        """Logits of a prompt in one step, and of its last token behind a step that held the others and a neighbour."""
        whole = self._run(self._batches.whole, self._positions)
        return torch.cat([whole, self._run(*self._last())])

    def _outcome(self) -> torch.Tensor:
        """What changes are held against."""
        with whole_rows(self._model):
            return self._answers()

    def _change(self, name: str, operate: Callable[[Undo], int]) -> None:
        tolerance = tolerance_of(self._model, self._dtype)
        before = self._outcome() if self._known is None else self._known
        self._done[name], self._known = apply_checked(
            name, operate, before, self._outcome, tolerance=tolerance, ranks=self._ranks
        )
        if self._done[name] is None:
            self.notes.append(f"{name} switched off: the changed model's logits differ")

    def _pack(self) -> None:
        self._done["packed linears"] = pack_linears(self._model, self._dtype)
        if not self._done["packed linears"]:
            return
        # Low rather than average: where the best logit is low, several tokens are likely, and order matters.
        best = float(self._outcome()[:CHECK_TOKENS].max(dim=-1).values.quantile(0.1))
        for module in self._model.modules():
            if isinstance(module, PackedHead) and math.isfinite(best):
                module.calibrate(best)
        self._known = None

    def _launches(self) -> int:
        """Launches of one layer in a decoding step; 0 where the layers are not to be found."""
        layers = getattr(self._model.get_decoder(), "layers", None)
        if not isinstance(layers, nn.ModuleList) or not len(layers):
            return 0
        alike = [layer for layer in layers if not is_cross(layer)]
        layer: Any = alike[len(alike) // 2]
        forward, count = layer.forward, 0

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            with counting_launches() as counter:
                result = forward(*arguments, **options)
            count = counter.count
            return result

        layer.forward = counted
        try:
            self._run(*self._last())
        finally:
            del layer.forward
        return count

    def _last(self) -> tuple[ForwardBatch, torch.Tensor]:
        """A decoding step, all before it computed."""
        self._run(self._batches.first, self._batches.first.logits_index)
        return self._batches.last, self._batches.last.logits_index
