"""How a transformers model reaches our attention: a name in its AttentionInterface, and one ambient step.

transformers calls the attention function of every layer with q, k and v of all packed tokens. What it cannot pass, the
step's block tables and the layer's cache, stands in an `AttentionStep` that is active while the forward runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.errors import ModelLoadError
from engine.sizing.cache import LayerShape

ATTENTION_NAME = "headrace"
"""Has no entry in transformers' mask registry, so no mask is ever built for it."""

HARMLESS = frozenset(
    {
        "dropout", "position_ids", "use_cache", "is_causal", "output_attentions", "cache_position", "logits_to_keep",
        "vision_feature_layer", "vision_feature_select_strategy",
    }
)  # fmt: skip
"""What transformers passes to attention functions beside what ours takes, and what changes nothing here."""


class AttentionBackend(Protocol):
    """Plan once a step, run once a layer."""

    capturable: bool
    """Whether the launches of a step may be recorded and repeated with other lengths: it reads them on the device."""
    serves_layers: str
    """Which whole layers it can serve: `engine.models.cpu_layer`'s ("cpu"), `engine.models.cuda_layer`'s ("cuda"), or
    none ("")."""

    def plan(self, batch: ForwardBatch) -> None:
        """Prepare what all layers of this step share."""

    def run(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: LayerCache,
        *,
        scaling: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Write k `[KV, T, Dk]` and v `[KV, T, Dv]` to the step's slots, attend with q `[H, T, Dk]`.

        Returns `[T, H, Dv]`. `window` is the number of newest tokens a query sees, itself included. Where the cache
        `is_latent`, v is in k, and is not written.
        """


class _Step:
    backend: AttentionBackend | None = None
    caches: dict[int, LayerCache] | None = None
    probe: dict[int, LayerShape] | None = None


_step = _Step()


@contextmanager
def attention_step(backend: AttentionBackend, caches: dict[int, LayerCache], batch: ForwardBatch) -> Iterator[None]:
    """Make `backend` serve the attention layers of the forward of this batch that runs inside."""
    assert _step.backend is None and _step.probe is None, "attention steps do not nest"
    backend.plan(batch)
    _step.backend, _step.caches = backend, caches
    try:
        yield
    finally:
        _step.backend = _step.caches = None


def attention_step_of(layer: int) -> tuple[AttentionBackend, LayerCache]:
    """The backend that serves the forward now running, and the cache of one of its layers."""
    assert _step.backend is not None and _step.caches is not None, "attention outside a step"
    return _step.backend, _step.caches[layer]


@contextmanager
def probe_layers() -> Iterator[dict[int, LayerShape]]:
    """Inside, attention computes nothing and notes the shape of each layer's keys and values.

    One forward of one token thus tells the cache layout of any architecture, without reading its configuration.
    """
    assert _step.backend is None and _step.probe is None, "attention steps do not nest"
    _step.probe = {}
    try:
        yield _step.probe
    finally:
        _step.probe = None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query `[1, H, T, D]`, key and value `[1, KV, T, D]`; returns `[1, T, H, D]`."""
    layer = module.layer_idx
    assert isinstance(layer, int) and query.shape[0] == 1 and attention_mask is None
    if _step.probe is not None:
        wanted = sorted(
            name for name, value in others.items() if name not in HARMLESS and value is not None and value is not False
        )
        if wanted or layer in _step.probe:
            what = f"its attention wants {wanted[0]}" if wanted else "its layers attend more than once"
            raise ModelLoadError(
                f"{type(module).__name__} does not run on this engine: {what}",
                hint="docs/models.md says which architectures do",
            )
        _step.probe[layer] = LayerShape(key.shape[1], key.shape[-1], value.shape[-1], _begins(value, key))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None
    backend, cache = attention_step_of(layer)
    output = backend.run(
        query[0],
        key[0],
        value[0],
        cache,
        scaling=scaling if scaling is not None else query.shape[-1] ** -0.5,
        softcap=softcap,
        window=sliding_window,
    )
    return output.unsqueeze(0), None


def _begins(value: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether values `[1, KV, T, Dv]` are the first numbers of keys `[1, KV, T, Dk]`, in the same memory."""
    return value.shape[-1] < key.shape[-1] and value.data_ptr() == key.data_ptr() and value.stride() == key.stride()


def register() -> None:
    """Make `ATTENTION_NAME` known to transformers. Idempotent."""
    AttentionInterface.register(ATTENTION_NAME, _attention)
