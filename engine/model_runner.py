"""One model on one device: its weights, its KV cache, and a step over them."""

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from engine.attention.context import ATTENTION_NAME, AttentionBackend, attention_step, probe_layers, register
from engine.attention.cpu import CpuAttention
from engine.attention.reference import ReferenceAttention
from engine.config import EngineConfig
from engine.device import select_device, set_threads, to_device
from engine.errors import ConfigError
from engine.forward_batch import BatchBuilder, ForwardBatch
from engine.governor import ThreadGovernor
from engine.graphs import DecodeGraphs
from engine.kernels.cpu import MAX_HEAD_DIM, CpuKernels, load_kernels
from engine.kv_cache import LayerCache, LayerShape, allocate, bytes_per_token, size_cache
from engine.load_check import CHECK_BLOCKS, CHECK_TOKENS, CheckBatches, check_batching, check_layers, refusal
from engine.logprobs import score_prompts
from engine.messages import TokenLogprobs
from engine.models.cpu_layer import replace_layers
from engine.models.fusion import PackedHead, Undo, apply_checked, fuse_norms, merge_linears, pack_linears
from engine.models.loader import LoadedModel, load
from engine.models.rotary import freeze_rotary
from engine.sampler import PendingSample, Sampled, Sampler
from engine.scheduler import Scheduled
from engine.sequence import Sequence

logger = logging.getLogger(__name__)

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step may hold on this device."""

    max_num_seqs: int
    max_batched_tokens: int
    max_prefill_tokens: int


def device_limits(config: EngineConfig, device: torch.device) -> Limits:
    """Fill in what the configuration leaves open.

    On a CPU a prompt's tokens cost about as much each as a decoding row, so chunks are small while others decode.
    """
    cpu = device.type == "cpu"
    max_num_seqs = config.max_num_seqs or (64 if cpu else 256)
    max_batched_tokens = config.max_batched_tokens or (512 if cpu else 8192)
    max_batched_tokens = max(max_batched_tokens, max_num_seqs)
    return Limits(max_num_seqs, max_batched_tokens, min(128 if cpu else 2048, max_batched_tokens))


class StepInFlight:
    """A step whose forward pass was launched: its logits, and then its samples, on their way."""

    def __init__(self, runner: "ModelRunner", rows: list[Scheduled], logits: torch.Tensor, started: float) -> None:
        """`logits` `[R, V]`: of the rows that sample, then of all positions that are scored."""
        self._runner = runner
        self._logits = logits
        self._started = started
        self._sampling = [row for row in rows if row.samples]
        self._scoring = [row for row in rows if row.scored]
        self._is_decode = all(row.num_tokens == 1 for row in rows)
        self._sample: PendingSample | None = None
        self._scores: list[list[TokenLogprobs] | None] = []

    @torch.inference_mode()
    def sample(self, sampling: list[Scheduled], scoring: list[Scheduled]) -> None:
        """Launch the sampling of some of the rows that sample, and score some of those that are scored."""
        num_samples = len(self._sampling)
        logits = self._logits[:num_samples]
        if len(sampling) < num_samples:
            places = [place for place, row in enumerate(self._sampling) if row in sampling]
            logits = logits[to_device(np.array(places, dtype=np.int64), logits.device)]
        if sampling:
            self._sample = self._runner.sample(logits, [row.sequence for row in sampling])
        if scoring:
            scores = score_prompts(self._logits[num_samples:], self._scoring)
            self._scores = [score for row, score in zip(self._scoring, scores, strict=True) if row in scoring]
        if self._is_decode:
            self._runner.governor.observe(time.perf_counter() - self._started, num_samples)

    def result(self) -> Sampled:
        """Wait for what was sampled and scored: entries in the order of the rows given to `sample`."""
        sampled = Sampled([], [], []) if self._sample is None else self._sample.result()
        return replace(sampled, prompt_logprobs=self._scores) if self._scores else sampled


class ModelRunner:
    """Loads a model and runs steps; knows nothing of queues or requests beyond the rows it is given."""

    def __init__(self, config: EngineConfig, progress: Progress) -> None:
        """Load the model. Raises ConfigError, ModelLoadError."""
        self.device = select_device(config.device)
        self.threads = set_threads(config.threads) if self.device.type == "cpu" else 1
        self.governor = ThreadGovernor(self.threads, torch.set_num_threads)
        self.limits = device_limits(config, self.device)
        register()
        self.loaded: LoadedModel = load(config, self.device, ATTENTION_NAME, progress)
        self.model = self.loaded.model
        self.dtype: torch.dtype = self.model.dtype
        self.notes: list[str] = []
        self.surgery: list[str] = []
        """What was changed in transformers' model."""
        shapes = self._probe_layers()
        self.attention_name = self._select_attention(config)
        self.kernels = self._load_kernels(shapes, progress)
        self.backend = self._make_backend(config.block_size)
        progress("fusing operations" if config.fusion else "checking the model", None)
        self._check_and_fuse(shapes, config.block_size, fusion=config.fusion)
        size = size_cache(config, bytes_per_token(shapes, self.dtype), self.loaded.max_context, self.device)
        if size.note:
            self.notes.append(size.note)
        self.num_blocks, self.context = size.num_blocks, size.context
        self.frozen_rotary = freeze_rotary(self.model, self.context)
        for kind in self.frozen_rotary:
            self.notes.append(f"{kind} rotary scaling is that of a context of {self.context} tokens, for every request")
        progress("allocating the KV cache", None)
        self.caches: dict[int, LayerCache] = allocate(
            shapes, num_blocks=size.num_blocks, block_size=config.block_size, dtype=self.dtype, device=self.device
        )
        self.kv_bytes = bytes_per_token(shapes, self.dtype) * size.num_blocks * config.block_size
        self.builder = BatchBuilder(
            max_num_seqs=self.limits.max_num_seqs,
            max_blocks=-(-self.context // config.block_size) + 1,
            block_size=config.block_size,
            device=self.device,
        )
        self.graphs = self._make_graphs(config)
        self.sampler = Sampler(
            max_num_seqs=self.limits.max_num_seqs, vocab_size=self.loaded.vocab_size, device=self.device
        )

    @torch.inference_mode()
    def forward(self, rows: list[Scheduled]) -> "StepInFlight":
        """Launch the forward pass of one step. On a CUDA device it still runs when this returns."""
        started = time.perf_counter()
        batch = self.builder.build(rows)
        return StepInFlight(self, rows, self._forward(batch), started)

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> PendingSample:
        """Launch the sampling of one token for each sequence, which the next forward pass can read."""
        sample = self.sampler.sample(logits, sequences)
        slots = to_device(np.array([sequence.slot for sequence in sequences], dtype=np.int64), self.device)
        self.builder.last_tokens.index_copy_(0, slots, sample.token_ids)
        return sample

    def wipe_blocks(self, blocks: list[int], block_size: int) -> None:
        """Zero the content of blocks, so that a NaN in them cannot outlive the sequence that made it."""
        slots = (np.array(blocks)[:, None] * block_size + np.arange(block_size)).ravel()
        index = torch.from_numpy(slots).to(self.device)
        for cache in self.caches.values():
            cache.k[:, index] = 0
            cache.v[:, index] = 0

    def _forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Logits `[R, V]` of the batch's `logits_index`."""
        if self.graphs is not None and self.graphs.fits(batch):
            return self.graphs.run(batch)
        self.backend.plan(batch)
        return self._planned(batch)

    def _planned(self, batch: ForwardBatch) -> torch.Tensor:
        with attention_step(self.backend, self.caches, None):
            return self._logits(batch.input_ids, batch.positions, batch.logits_index)

    def _logits(self, input_ids: torch.Tensor, positions: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        output = self.model(
            input_ids=input_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            attention_mask=None,
            use_cache=False,
            logits_to_keep=index,
        )
        return torch.as_tensor(output.logits[0])

    def _make_graphs(self, config: EngineConfig) -> DecodeGraphs | None:
        if not (self.device.type == "cuda" if config.graphs is None else config.graphs):
            return None
        return DecodeGraphs(
            self.backend.plan,
            self._planned,
            max_num_seqs=self.limits.max_num_seqs,
            max_blocks=-(-self.context // config.block_size) + 1,
            max_context=self.context,
            device=self.device,
        )

    @torch.inference_mode()
    def _probe_layers(self) -> dict[int, LayerShape]:
        """The attention layers, found by a forward of one token."""
        token = torch.zeros(1, dtype=torch.int64, device=self.device)
        with probe_layers() as shapes:
            logits = self._logits(token, token, token)
        check_layers(self.loaded.architecture, self.loaded.text_config, set(shapes))
        if logits.shape[-1] != self.loaded.vocab_size:
            raise refusal(self.loaded.architecture, "its logits are not as wide as its output head")
        return dict(shapes)

    @torch.inference_mode()
    def _check_and_fuse(self, shapes: dict[int, LayerShape], block_size: int, *, fusion: bool) -> None:
        """See that the model can serve; then operate on it, checking every change on a short prompt."""
        batches = CheckBatches(self.loaded.vocab_size, block_size, self.device)
        caches = allocate(shapes, num_blocks=CHECK_BLOCKS, block_size=block_size, dtype=self.dtype, device=self.device)
        positions = torch.arange(CHECK_TOKENS, device=self.device)

        def run(batch: ForwardBatch, index: torch.Tensor) -> torch.Tensor:
            with attention_step(self.backend, caches, batch):
                return self._logits(batch.input_ids, batch.positions, index).float()

        whole = batches.whole()
        check_batching(self.loaded.architecture, batches, lambda batch: run(batch, batch.logits_index))
        if not fusion:
            return

        def check() -> torch.Tensor:
            return run(whole, positions)

        tolerance = 1e-4 if self.dtype == torch.float32 else 0.25
        done: dict[str, int | None] = {}

        def change(name: str, operate: Callable[[Undo], int]) -> None:
            done[name] = apply_checked(name, operate, check, tolerance=tolerance)
            if done[name] is None:
                self.notes.append(f"{name} switched off: the changed model's logits differ")

        change("merged projections", lambda undo: merge_linears(self.model, undo))
        change("fused norms", lambda undo: fuse_norms(self.model, undo))
        if self.device.type == "cpu" and self.attention_name != "triton":
            done["packed linears"] = pack_linears(self.model, self.dtype)
            # Low rather than average: where the best logit is low, several tokens are likely, and order matters.
            best = float(check().max(dim=-1).values.quantile(0.1))
            for module in self.model.modules():
                if isinstance(module, PackedHead) and math.isfinite(best):
                    module.calibrate(best)
        if isinstance(self.backend, CpuAttention) and self.kernels is not None:
            kernels = self.kernels
            change("CPU layers", lambda undo: replace_layers(self.model, kernels, undo))
        if self.attention_name == "triton":
            from engine.models.cuda_layer import replace_cuda_layers

            change("CUDA layers", lambda undo: replace_cuda_layers(self.model, undo))
        self.surgery = [name for name, count in done.items() if count]
        logger.info("%s", ", ".join(f"{done[name]} {name}" for name in self.surgery))

    def _select_attention(self, config: EngineConfig) -> str:
        name = config.attention
        if name == "auto":
            name = "cpu" if self.device.type == "cpu" else "triton"
        if name == "cpu" and self.device.type != "cpu":
            raise ConfigError("attention: cpu serves the CPU only", hint="use auto")
        if name == "triton" and self.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ConfigError("attention: triton serves GPUs only", hint="use auto")
        return name

    def _load_kernels(self, shapes: dict[int, LayerShape], progress: Progress) -> CpuKernels | None:
        if self.attention_name != "cpu" or any(max(s.k_dim, s.v_dim) > MAX_HEAD_DIM for s in shapes.values()):
            return None
        progress("building the CPU kernels", None)
        kernels = load_kernels(self.dtype)
        if kernels is None:
            self.notes.append("no CPU kernels (see the log): plain torch serves instead, slower")
        return kernels

    def _make_backend(self, block_size: int) -> AttentionBackend:
        if self.attention_name == "cpu":
            return CpuAttention(block_size, self.kernels)
        if self.attention_name == "triton":
            from engine.attention.triton import TritonAttention  # an installation for CPUs has no triton

            return TritonAttention(block_size, self.device)
        return ReferenceAttention(block_size)
