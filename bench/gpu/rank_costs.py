"""What a rank's steps must move, do and send, and whether its part of a model fits, by arithmetic alone."""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from engine.config import EngineConfig
from engine.costs import Ceilings, Costs
from engine.sizing.fit import UNSEEN_BYTES, fit
from engine.sizing.formulas import shape_of
from engine.sizing.shape import ModelShape
from engine.sizing.speed import sent_bytes, step_costs
from engine.sizing.towers import decoder_of
from server.fleet.gpus import GPUS

GIB = 1 << 30
ITEM_BYTES = 2
"""Of a number in 16 bits, which models are measured in."""


@dataclass(frozen=True, slots=True)
class RankCosts(Costs):
    """Costs of one rank, to whose seconds those are added in which it sends to others: nothing else runs meanwhile."""

    row_bytes: float = 0.0
    """That it sends for a row whose logits are wanted."""
    prompt_bytes: float = 0.0
    """For another row."""
    link: float = math.inf
    """Bytes a second that it sends."""

    def decode_seconds(self, ceilings: Ceilings, batch: float, context: float) -> float:
        """See `Costs.decode_seconds`."""
        return Costs.decode_seconds(self, ceilings, batch, context) + batch * self.row_bytes / self.link

    def prompt_seconds(self, ceilings: Ceilings, tokens: float) -> float:
        """See `Costs.prompt_seconds`."""
        return Costs.prompt_seconds(self, ceilings, tokens) + tokens * self.prompt_bytes / self.link


def rank_costs(config: Mapping[str, Any], settings: EngineConfig, link: float | None, *, stored: bool) -> Costs | None:
    """Of a model with this config.json, of whose files FP8 may be `stored`.

    None for a kind that is not counted, or where several ranks speak over a link that is not known. Raises ConfigError
    for ranks that do not divide it.
    """
    ranks = settings.tensor_parallel
    shape = shape_of(config, ranks)
    if shape is None or (ranks > 1 and link is None):
        return None
    costs = step_costs(shape, settings, itemsize=ITEM_BYTES, fp8_files=stored)
    heads = int(decoder_of(config)["num_attention_heads"]) // ranks
    pairs = sum(layer.k_dim + layer.v_dim for layer in shape.cache.values())
    known = {field.name: getattr(costs, field.name) for field in fields(Costs)}
    return RankCosts(
        **known | {"attention_flops": 2.0 * heads * pairs},
        row_bytes=sent_bytes(shape, 1, ITEM_BYTES),
        prompt_bytes=sent_bytes(replace(shape, vocab_size=0), 1, ITEM_BYTES),
        link=link or math.inf,
    )


def room_on(config: Mapping[str, Any], settings: EngineConfig, num_bytes: int, *, stored: bool) -> tuple[int, str]:
    """Tokens that a KV cache beside a rank's part holds on an empty GPU of so many bytes, and what is lacking there.

    "" if nothing is, as is thought of kinds that are not counted. What drawing takes counts too, which holds a module
    whole before it is cut. Raises ConfigError for ranks that do not divide the model.
    """
    shape = shape_of(config, settings.tensor_parallel)
    if shape is None:
        return sys.maxsize, ""
    found = fit(shape, settings, num_bytes, itemsize=ITEM_BYTES, fp8_files=stored)
    drawing = UNSEEN_BYTES + found.load + (drawing_bytes(shape, stored=stored) if stored or shape.ranks > 1 else 0)
    needed = max(drawing, UNSEEN_BYTES + found.weights + found.step)
    if found.kv_tokens and needed <= num_bytes:
        return found.kv_tokens, ""
    each = "" if shape.ranks == 1 else f" on each of {shape.ranks} GPUs"
    return 0, (
        f"needs {needed / GIB:.0f} GiB{each} (weights {found.weights / GIB:.0f}) beside the KV cache, "
        f"and a GPU has {num_bytes / GIB:.0f}"
    )


def drawing_bytes(shape: ModelShape, *, stored: bool) -> int:
    """What the largest module takes while it is drawn: whole, and experts twice more where they are in FP8."""
    embedding = shape.vocab_size * shape.hidden_size * ITEM_BYTES
    if shape.experts is None:
        return embedding
    part = shape.experts.numbers
    return max(embedding, part * shape.ranks * ITEM_BYTES + (2 * part if stored else 0))


def link_of(device_name: str) -> float | None:
    """Bytes a second that a GPU sends to others, by the name that its driver tells; None for one that is not known."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    known = [gpu for gpu in GPUS.values() if set(gpu.title.lower().split()) <= words]
    return max(known, key=lambda gpu: len(gpu.title)).link if known else None
