"""Whether a model, or a rank's part of it, fits on a GPU, and what context it leaves, before either is there.

The engine rehearses its largest step and its largest image on the GPU itself; here they are counted, steps for layers
of ten launches (`engine.models.cuda_layer`). Otherwise the numbers are those by which the engine sizes itself. What a
process takes that is in no book was measured on an H100 (bench/results/2026-11-26-gpu-after.json), and is taken to be
the same elsewhere. What ranks take to speak with each other was not measured, nor were images.
"""

from dataclasses import dataclass

from engine.config import EngineConfig
from engine.sizing.cache import CUDA_SHARE, bytes_per_token, overhead_bytes
from engine.sizing.shape import ModelShape, Storage
from engine.sizing.steps import Limits, graphs_bytes, scored_bytes, step_limits, unordered_bytes

UNSEEN_BYTES = 1550 * 2**20
"""Of a GPU, what the driver keeps, and its context, libraries and kernels take in the engine's process."""
RANK_BYTES = 2**30
"""Set aside for NCCL's buffers where there are several ranks: 4 MiB for each neighbour and channel (NCCL_BUFFSIZE), of
which there are a few dozen, and its kernels. An allowance, which was not measured."""
FP8_HOLES = 0.27
"""Bytes for each number that is turned into FP8: what 16-bit weights that are freed one by one leave in holes."""
SAMPLED_BYTES = 14
"""Of a logit while all rows are sampled: as it is, adjusted, and twice in fp32 for log-probabilities."""
COUNT_BYTES = 5
"""Of a token of the vocabulary in each slot: how often it was said, and whether it stands in the prompt."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A model on a GPU."""

    weights: int
    """Bytes."""
    load: int
    """Bytes of the weights while they are loaded: as the files have them."""
    step: int
    """Bytes of the largest step, of an image that is encoded meanwhile, and of recorded steps."""
    images: int
    """Bytes that are set aside for images that were encoded."""
    kv_tokens: int
    """What the KV cache holds; 0 if the model does not fit."""
    context: int
    """Longest prompt plus answer."""

    @property
    def contexts(self) -> float:
        """How many of the longest are in the KV cache at once."""
        return self.kv_tokens / self.context if self.context else 0.0


def fit(shape: ModelShape, config: EngineConfig, num_bytes: int, *, itemsize: int = 2, fp8_files: bool = False) -> Fit:
    """A model with these settings on an empty GPU of so many bytes, its dtype being of `itemsize` bytes.

    `quantization` and `kv_dtype`, the sizes of steps and blocks, and `context` are taken from `config`. With
    `fp8_files` the files have the weights in FP8 already; else `quantization: fp8` reads all of them in full before. Of
    several ranks the shape is that of one's part, on a GPU of its own.
    """
    limits, storage = step_limits(config, is_cpu=False), storage_of(config, fp8_files=fp8_files)
    weights = shape.weight_bytes(itemsize, storage)
    load = shape.weight_bytes(itemsize) if storage == "quantized" else weights
    held = UNSEEN_BYTES + limits.max_num_seqs * shape.vocab_size * COUNT_BYTES
    held += RANK_BYTES if shape.ranks > 1 else 0
    if storage == "quantized":
        held += round(FP8_HOLES * sum(linear.inputs * linear.outputs for linear in shape.in_fp8(storage)))
    context = config.context or shape.context
    step = step_bytes(shape, limits, itemsize, context)
    step += unordered_bytes(limits, step) if config.graphs == "lazy" else 0
    step += graphs_bytes(limits, shape.vocab_size, itemsize)
    kv_itemsize = kv_itemsize_of(config, itemsize)
    overhead = overhead_bytes(shape.cache, kv_itemsize, config.block_size, is_cuda=True)
    room = num_bytes - held - weights - step - overhead
    images = 0 if shape.tower is None else shape.tower.kept_bytes(room * CUDA_SHARE, itemsize, context)
    left = (room - images) * CUDA_SHARE
    blocks = int(left // (bytes_per_token(shape.cache, kv_itemsize) * config.block_size))
    if blocks < 2 or load + UNSEEN_BYTES > num_bytes:
        return Fit(weights, load, step, images, 0, 0)
    tokens = blocks * config.block_size
    return Fit(weights, load, step, images, tokens, min(context, tokens))


def storage_of(config: EngineConfig, *, fp8_files: bool) -> Storage:
    """How a model with these settings keeps its weights, of files that have them in FP8 or not."""
    if config.quantization != "fp8":
        return "plain"
    return "stored" if fp8_files else "quantized"


def kv_itemsize_of(config: EngineConfig, itemsize: int) -> int:
    """Bytes of a number of the KV cache."""
    return 1 if config.kv_dtype == "fp8" else itemsize


def step_bytes(shape: ModelShape, limits: Limits, itemsize: int, context: int) -> int:
    """What the largest step holds at once, as `ModelRunner.rehearse` measures it, with the largest image beside it.

    That is in a layer's MLP the residual, what was normed and attended, gate and up and what becomes of them; in one
    with experts, the same of each token and expert (`engine.kernels.triton_experts`); or, in models with a large
    vocabulary, what sampling holds of the logits. Logits of scored prompts come on top.
    """
    layer = limits.max_batched_tokens * 3 * (shape.hidden_size + shape.widest) * itemsize
    sampling = limits.max_num_seqs * shape.vocab_size * SAMPLED_BYTES
    step = max(layer, _experts_bytes(shape, limits, itemsize), sampling)
    if shape.tower is not None:
        step = shape.tower.step_bytes(step, itemsize, context)
    return step + scored_bytes(shape.vocab_size)


def _experts_bytes(shape: ModelShape, limits: Limits, itemsize: int) -> int:
    if shape.experts is None:
        return 0
    pair = 3 * shape.experts.inner + shape.hidden_size
    return limits.max_batched_tokens * (3 * shape.hidden_size + shape.experts.chosen * pair) * itemsize
