"""What `attention: auto` means on a GPU: the backend, and the launch shapes of our kernel, that measure best there.

The candidates are timed once for each GPU, shape of heads and versions of the libraries: on a batch that decodes and on
a prompt. The result is kept in the cache directory, so only the first start on a machine pays for it. Where there was
no time or memory for a candidate, the best of the others serves, and the next start measures again.
"""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from engine.attention.trial import Batch, Timer, Trial, device_timer
from engine.cache import cache_dir
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.errors import ModelLoadError
from engine.kernels.launch_shapes import LaunchKey, LaunchShape, launch_key, use_shape
from engine.sizing.cache import LayerShape

logger = logging.getLogger(__name__)

SDPA_HANDICAP = 1.25
"""SDPA must be faster by this, since steps with it are not recorded and layers not fused."""
CACHE_BYTES = 256 * 2**20
"""Most keys and values that the decoding batch reads: well above what a GPU keeps in its own caches."""
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """The attention of a model's layers."""

    heads: int
    kv_heads: int
    k_dim: int
    v_dim: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    block_size: int
    softcap: float | None = None
    is_latent: bool = False
    """Whether the values are the first numbers of the keys (`LayerCache.is_latent`)."""

    @property
    def token_bytes(self) -> int:
        """Of a token's keys and values in one layer's cache."""
        shape = LayerShape(self.kv_heads, self.k_dim, self.v_dim, self.is_latent)
        return shape.elements * self.kv_dtype.itemsize

    def key(self, *, is_prompt: bool) -> LaunchKey:
        """What the kernel's launch shapes are kept under."""
        return launch_key(
            self.k_dim, self.heads // self.kv_heads, is_prompt=is_prompt, is_latent=self.is_latent,
            kv_bytes=4 if self.dtype == torch.float32 else self.kv_dtype.itemsize,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Workload:
    """How much attention is timed."""

    decodes: int = 32
    context: int = 2048
    prompt: int = 2048


@dataclass(frozen=True, slots=True)
class Choice:
    """What measured best. Shapes are None where the backend has none."""

    attention: str
    decode: LaunchShape | None = None
    prompt: LaunchShape | None = None
    seconds: dict[str, float] | None = None
    """By candidate, of one layer."""
    is_complete: bool = True
    """Whether there was time and memory for every candidate."""

    def __str__(self) -> str:
        if self.decode is None or self.prompt is None:
            return self.attention
        return f"{self.attention} (decoding {self.decode}, prompts {self.prompt})"


def choose_attention(problem: Problem, device: torch.device) -> Choice:
    """The remembered choice for this GPU and problem, or one that is measured now; its shapes are in use afterwards.

    Only what is complete is remembered. Raises ModelLoadError where no backend runs.
    """
    path = cache_dir() / "attention" / f"{fingerprint(problem, torch.cuda.get_device_name(device))}.json"
    choice = recall(path)
    if choice is None:
        try:
            choice = measure(problem, device, device_timer(device))
        except torch.OutOfMemoryError:
            logger.warning("no memory is left to measure what attention is best here; triton serves, unmeasured")
            return Choice("triton")
        finally:
            torch.cuda.empty_cache()
        if choice.is_complete:
            remember(path, choice)
        else:
            logger.warning("not every way to compute attention could be measured; the next start tries again")
    apply(problem, choice)
    logger.info("attention: %s", choice)
    return choice


def apply(problem: Problem, choice: Choice) -> None:
    """Launch the kernels of this process as the choice says."""
    use_shape(problem.key(is_prompt=False), choice.decode)
    use_shape(problem.key(is_prompt=True), choice.prompt)


def fingerprint(problem: Problem, device_name: str) -> str:
    """Of everything that may change what is best: device, problem, versions, the kernel and its shapes as written."""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "none"
    kernels = Path(__file__).parent.parent / "kernels"
    names = ("triton_attention.py", "triton_pieces.py", "launch_shapes.py")
    source = b"".join((kernels / name).read_bytes() for name in names)
    text = f"{_FORMAT}\0{device_name}\0{problem}\0{torch.__version__}\0{version}\0"
    return hashlib.sha256(text.encode() + source).hexdigest()[:32]


def remember(path: Path, choice: Choice) -> None:
    """Write a choice; where that fails, the next start measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(choice))
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            (Path(work) / path.name).write_text(text, encoding="utf-8")
            os.replace(Path(work) / path.name, path)
    except OSError as error:
        logger.info("what attention is best cannot be remembered: %s", error.strerror)


def recall(path: Path) -> Choice | None:
    """A choice that was written, None where there is none or it cannot be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        shapes = {name: LaunchShape(**found[name]) if found[name] else None for name in ("decode", "prompt")}
        return Choice(str(found["attention"]), shapes["decode"], shapes["prompt"], found["seconds"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


@torch.inference_mode()
def measure(problem: Problem, device: torch.device, timer: Timer, workload: Workload | None = None) -> Choice:
    """Time the candidates. Raises ModelLoadError where none runs."""
    workload = workload or Workload()
    trial = Trial(problem.block_size, device, timer)
    decode = trial.best_shape("decode", problem.key(is_prompt=False), decoding_batch(problem, workload, device))
    prompt = trial.best_shape("prompt", problem.key(is_prompt=True), prompt_batch(problem, workload, device))
    costs: dict[str, float] = {}
    for name, factor in (("triton", 1.0), ("sdpa", SDPA_HANDICAP)):
        parts = [trial.seconds.get(f"{name} {what}") for what in ("decode", "prompt")]
        if parts[0] is not None and parts[1] is not None:
            # Of one answered token with one token of a prompt.
            costs[name] = factor * (parts[0] / workload.decodes + parts[1] / workload.prompt)
    if not costs:
        raise ModelLoadError(
            f"no attention backend runs on this GPU: {trial.last_error}", hint="attention: reference runs anywhere"
        )
    if min(costs, key=costs.__getitem__) == "sdpa":
        return Choice("sdpa", seconds=trial.seconds, is_complete=trial.is_complete)
    return Choice("triton", decode, prompt, trial.seconds, trial.is_complete)


def decoding_batch(problem: Problem, workload: Workload, device: torch.device) -> Batch:
    """Rows of one query each, whose keys lie in disorder. Shorter contexts where a token takes much memory."""
    context = max(16, min(workload.context, CACHE_BYTES // (workload.decodes * problem.token_bytes)))
    return make_batch(problem, [(1, context)] * workload.decodes, device)


def prompt_batch(problem: Problem, workload: Workload, device: torch.device) -> Batch:
    """One prompt from its first token on."""
    return make_batch(problem, [(workload.prompt, workload.prompt)], device)


def make_batch(problem: Problem, rows: list[tuple[int, int]], device: torch.device) -> Batch:
    """A step of (queries, context) rows over random keys and values."""
    size = problem.block_size
    counts = [-(-context // size) for _, context in rows]
    tables = torch.zeros(len(rows), max(counts), dtype=torch.int32, device=device)
    blocks = torch.randperm(sum(counts), device=device).to(torch.int32)
    for row, own in enumerate(torch.split(blocks, counts)):
        tables[row, : len(own)] = own
    queries = torch.tensor([count for count, _ in rows])
    contexts = torch.tensor([context for _, context in rows])
    owner = torch.arange(len(rows)).repeat_interleave(queries)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), queries.cumsum(0)])
    num_tokens = int(starts[-1])
    widths = (problem.k_dim,) if problem.is_latent else (problem.k_dim, problem.v_dim)
    positions = torch.arange(num_tokens) - starts[owner] + (contexts - queries)[owner]
    slots = tables.cpu()[owner, positions // size].long() * size + positions % size

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=problem.dtype, device=device)

    forward = ForwardBatch(
        input_ids=torch.zeros(num_tokens, dtype=torch.int64, device=device),
        positions=positions.to(device),
        slot_mapping=slots.to(device),
        block_tables=tables,
        seqlens_k=contexts.to(device, torch.int32),
        query_starts=starts.to(device, torch.int32),
        logits_index=torch.zeros(0, dtype=torch.int64, device=device),
        query_lens=queries.tolist(),
        context_lens=contexts.tolist(),
        num_decodes=len(rows) if num_tokens == len(rows) else 0,
    )
    kept = [random(problem.kv_heads, sum(counts) * size, dim).to(problem.kv_dtype) for dim in widths]
    cache = LayerCache.of_latents(kept[0], problem.v_dim) if problem.is_latent else LayerCache(kept[0], kept[1])
    q = random(num_tokens, problem.heads, problem.k_dim).transpose(0, 1)
    new = [random(num_tokens, problem.kv_heads, dim).transpose(0, 1) for dim in widths]
    k, v = new[0], new[-1][..., : problem.v_dim]
    return Batch(forward, q, k, v, cache, problem.k_dim**-0.5, problem.softcap)
