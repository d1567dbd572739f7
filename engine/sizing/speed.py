"""How many tokens a second a model can answer with at most, from what a decoding step must move and do.

Each rank reads its weights and its part of the cache, and computes; then ranks add up what each has. What lies between
is left out: launches, the latency of each reduction, attention's operations, images, waiting. So these are limits,
which no engine passes, and not what one will do.
"""

from engine.config import EngineConfig
from engine.costs import Ceilings, Costs
from engine.sizing.cache import bytes_per_token
from engine.sizing.fit import kv_itemsize_of, storage_of
from engine.sizing.shape import ModelShape

SUMS_A_LAYER = 2
"""Behind attention and behind the MLP; the input embedding is summed up as well."""


def decode_limit(
    shape: ModelShape,
    config: EngineConfig,
    ceilings: Ceilings,
    link: float,
    *,
    batch: int,
    context: int,
    itemsize: int = 2,
    fp8_files: bool = False,
) -> float:
    """Tokens a second of `batch` sequences together, each of which has `context` tokens behind it.

    `shape`, `config` and `fp8_files` are as `fit` takes them; `ceilings` are one GPU's, and `link` is how many bytes a
    second it sends to others, while it receives as many.
    """
    costs = step_costs(shape, config, itemsize=itemsize, fp8_files=fp8_files)
    return batch / (costs.decode_seconds(ceilings, batch, context) + sent_bytes(shape, batch, itemsize) / link)


def step_costs(shape: ModelShape, config: EngineConfig, *, itemsize: int = 2, fp8_files: bool = False) -> Costs:
    """What a rank moves and does in decoding steps of text alone."""
    shape = shape.of_text
    storage, experts = storage_of(config, fp8_files=fp8_files), shape.experts
    share = 1.0 if experts is None else experts.chosen / experts.number
    linears = sum(linear.numbers for layer in shape.linears for linear in layer)
    return Costs(
        step_bytes=float(shape.weight_bytes(itemsize, storage) - (0 if shape.is_tied else shape.embedding * itemsize)),
        hidden_flops=2 * (shape.other + linears + shape.expert_numbers * share),
        head_flops=2.0 * shape.head,
        attention_flops=0.0,
        kv_bytes=float(bytes_per_token(shape.cache, kv_itemsize_of(config, itemsize))),
        is_fp8=storage != "plain",
        routed_bytes=float(shape.expert_bytes(itemsize, storage)),
        routed_share=share,
    )


def sent_bytes(shape: ModelShape, rows: int, itemsize: int) -> float:
    """What each rank sends in a step of so many rows: sums in a ring, and its part of the logits."""
    others = (shape.ranks - 1) / shape.ranks
    sums = (SUMS_A_LAYER * len(shape.of_text.linears) + 1) * 2 * shape.hidden_size
    return others * rows * (sums + shape.vocab_size) * itemsize
