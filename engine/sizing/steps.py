"""Steps in numbers: how much one may hold on a device, in which sizes steps are recorded, and what that takes."""

from dataclasses import dataclass

from engine.config import EngineConfig
from engine.scheduling.pacing import SMALLEST_CHUNK
from engine.scheduling.scheduled import MAX_SCORED_TOKENS

CUDA_SMALLEST_CHUNK = 256
TOKEN_SIZES = (64, 128, 192, 256, 384, 512, 768, 1024)
"""Tokens of recorded steps with prompts."""
ROW_SIZES = (16, 64)
"""Their rows, and one row more than there may be sequences."""
BYTES_PER_GRAPH = 24 * 2**20
"""What a recorded step takes beside its tensors, by the driver's own books: an upper bound for memory planning."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step may hold on a device."""

    max_num_seqs: int
    max_batched_tokens: int
    max_prefill_tokens: int
    """Of prompts, beside decoding rows."""
    min_prefill_tokens: int
    """What pacing may always leave to prompts there."""


def step_limits(config: EngineConfig, *, is_cpu: bool) -> Limits:
    """Fill in what the configuration leaves open.

    On a CPU a prompt's tokens cost about as much each as a decoding row, so chunks are small while others decode. On a
    GPU the first few hundred cost little beside what it takes to launch the step.
    """
    max_num_seqs = config.max_num_seqs or (64 if is_cpu else 256)
    max_batched_tokens = config.max_batched_tokens or (512 if is_cpu else 8192)
    max_batched_tokens = max(max_batched_tokens, max_num_seqs)
    return Limits(
        max_num_seqs,
        max_batched_tokens,
        max_prefill_tokens=min(128 if is_cpu else 2048, max_batched_tokens),
        min_prefill_tokens=SMALLEST_CHUNK if is_cpu else CUDA_SMALLEST_CHUNK,
    )


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """Rows of recorded decoding steps: 1, 2, 4, 8, then steps of 8 to 64, of 16 beyond, and the limit itself."""
    sizes = [1, 2, 4, *range(8, 65, 8), *range(80, max_num_seqs + 16, 16)]
    return sorted({size for size in sizes if size < max_num_seqs} | {max_num_seqs})


def step_sizes(max_num_seqs: int, max_tokens: int) -> list[tuple[int, int]]:
    """Tokens and rows of each recorded step with prompts, in order. None has more rows than tokens."""
    rows = sorted({size for size in ROW_SIZES if size <= max_num_seqs} | {max_num_seqs + 1})
    return [(t, r) for t in TOKEN_SIZES for r in rows if r <= t <= max_tokens]


@dataclass(frozen=True, slots=True)
class StepForms:
    """Every form of a step that has kernels of its own: what a load builds, and records where it can.

    Kernels are built for classes of tokens and rows that end with powers of two, and for whether rows decode. So steps
    of these forms launch whatever any other would.
    """

    decoding: tuple[int, ...]
    """Rows of padded steps that decode, in order; none where steps are not padded."""
    mixed: tuple[tuple[int, int], ...]
    """Tokens and rows of padded steps with prompts, in order."""
    plain: tuple[int, ...]
    """Tokens of steps that run as they are, in order: those that are larger, are scored, have images, or follow where
    nothing is padded. The first of the tokens decodes, the others are a prompt."""


def step_forms(limits: Limits, max_context: int, *, pads: bool) -> StepForms:
    """The forms of an engine's steps, whose sequences have at most `max_context` tokens."""
    most = min(limits.max_batched_tokens, limits.max_num_seqs * max_context)
    plain = sorted({2**power for power in range(most.bit_length())} | {most})
    if not pads:
        return StepForms((), (), tuple(plain))
    # The row of the tokens too many has to be one that a sequence could have.
    mixed = step_sizes(limits.max_num_seqs, min(most, max_context))
    return StepForms(tuple(bucket_sizes(limits.max_num_seqs)), tuple(mixed), tuple(plain))


def graphs_bytes(limits: Limits, vocab_size: int, itemsize: int) -> int:
    """Memory to keep for all recorded steps: their records, and the logits of the largest."""
    number = len(bucket_sizes(limits.max_num_seqs)) + len(step_sizes(limits.max_num_seqs, limits.max_batched_tokens))
    return number * BYTES_PER_GRAPH + limits.max_num_seqs * vocab_size * itemsize


def unordered_bytes(limits: Limits, activation_bytes: int) -> int:
    """What recorded steps may take more where the largest is not the first.

    `activation_bytes` are those of the largest step there may be. A step finds no room in what a smaller one took
    before it: at worst each number of tokens takes its own.
    """
    tokens = sum(bucket_sizes(limits.max_num_seqs)) + sum(t for t in TOKEN_SIZES if t <= limits.max_batched_tokens)
    return activation_bytes * tokens // limits.max_batched_tokens


def scored_bytes(vocab_size: int) -> int:
    """Of the logits of prompts that are scored, as they are and in fp32."""
    return MAX_SCORED_TOKENS * vocab_size * 8
