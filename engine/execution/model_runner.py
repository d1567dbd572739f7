"""One model on one device: its weights, its KV cache, and a step over them."""

import logging
import time
from collections.abc import Callable

import numpy as np
import torch

from engine.attention.choice import Choice
from engine.attention.context import ATTENTION_NAME, AttentionBackend, attention_step, register
from engine.attention.select import make_backend, problem_of, select_attention
from engine.cache import Progress, no_progress
from engine.config import EngineConfig
from engine.device.device import select_device, set_threads
from engine.device.forward_batch import BatchBuilder, ForwardBatch
from engine.device.governor import ThreadGovernor
from engine.device.host_batch import HostBatch
from engine.device.kv_cache import LayerCache, allocate, size_cache
from engine.device.ranks import Ranks
from engine.execution.dependent import choose_dependent
from engine.execution.example_steps import largest_step, on_device, plain_step
from engine.execution.footprint import peak_bytes
from engine.execution.graphs import FIELDS
from engine.execution.launched import StepInFlight
from engine.execution.logits import compute_logits
from engine.execution.mixed_graphs import input_room
from engine.execution.padded_steps import PaddedSteps
from engine.execution.probing import cpu_kernels, offsets_of_keys, probed_layers
from engine.execution.put_away import PutAway, tensors_of
from engine.execution.recording import Recorder
from engine.execution.sight import Rehearsed, Seen, Sight, blindness, make_sight
from engine.models.cross_attention import looking
from engine.models.latent_attention import attend_on_latents
from engine.models.load_check import CHECK_BLOCKS
from engine.models.loaded import LoadedModel
from engine.models.loader import load
from engine.models.quantized import round_activations
from engine.models.rotary import freeze_rotary
from engine.models.surgery import Surgery
from engine.sampling.sampler import PendingSample, Sampled
from engine.sampling.select import make_sampler
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.sequence import Sequence
from engine.sizing.cache import LayerShape, bytes_per_token, overhead_bytes
from engine.sizing.steps import graphs_bytes, scored_bytes, step_forms, step_limits, unordered_bytes

logger = logging.getLogger(__name__)


class ModelRunner:
    """Loads a model and runs steps; knows nothing of queues or requests beyond the rows it is given."""

    def __init__(self, config: EngineConfig, progress: Progress, ranks: Ranks | None = None) -> None:
        """Load the model, or this rank's part of it. Raises ConfigError, ModelLoadError.

        All `ranks` do this with the same configuration: whatever takes a forward pass, all take together.
        """
        self._ranks = ranks
        self._agree: Callable[[bool], bool] = bool if ranks is None else ranks.every
        self.device = select_device(config.device) if ranks is None else ranks.device
        self.threads = set_threads(config.threads, config.tensor_parallel) if self.device.type == "cpu" else 1
        self.governor = ThreadGovernor(self.threads, torch.set_num_threads)
        self.limits = step_limits(config, is_cpu=self.device.type == "cpu")
        register()
        self.loaded: LoadedModel = load(config, self.device, ATTENTION_NAME, progress, ranks)
        self.model = self.loaded.model
        self.dtype: torch.dtype = self.model.dtype
        self.kv_dtype = torch.float8_e4m3fn if config.kv_dtype == "fp8" else self.dtype
        self.notes: list[str] = [note for note in (blindness(self.loaded, ranks),) if note is not None]
        self.surgery: list[str] = []
        """What was changed in transformers' model."""
        if self.loaded.fp8_linears and self.device.type == "cpu":
            self.notes.append("FP8 products are computed in plain torch on a CPU, slower than without them")
        self._block_size = config.block_size
        self._records = self.device.type == "cuda" if config.graphs is None else bool(config.graphs)
        shapes = self._choose(config, progress)
        self._prepare(shapes, config, progress)
        self._allocate(shapes, config, progress)
        self.builder = BatchBuilder(
            max_num_seqs=self.limits.max_num_seqs,
            max_blocks=-(-self.context // config.block_size) + 1,
            block_size=config.block_size,
            device=self.device,
            num_inputs=max(len(FIELDS) * self.limits.max_num_seqs, input_room(self.limits.max_num_seqs)),
            crosses=self.sight is not None and self.sight.crosses,
        )
        self.padded = self._make_padded(is_lazy=config.graphs == "lazy")
        self._away: PutAway | None = None
        if self.device.type == "cuda":
            progress("trying dependent launches", None)
            # All kernels are others then, so nothing is built for good before.
            choose_dependent(self.device, None if self.padded is None else self.padded.put_one, ranks)
            self.warm_up(progress)

    def _choose(self, config: EngineConfig, progress: Progress) -> dict[int, LayerShape]:
        """Who computes what for this model: images, attention, sampling. The layers that attend."""
        self.sight = make_sight(self.loaded, config.context or self.loaded.max_context, self._ranks)
        self.notes += attend_on_latents(self.loaded, self._ranks)
        shapes = probed_layers(self.loaded, self._logits)
        problem = problem_of(shapes, self.loaded.text_config, self.dtype, self.kv_dtype, config.block_size)
        self.attention: Choice = select_attention(config, problem, self.device, progress, self._ranks)
        self.attention_name = self.attention.attention
        self.kernels = cpu_kernels(self.attention_name, shapes, self.dtype, progress, self.notes)
        self.backend: AttentionBackend = make_backend(
            self.attention_name, problem, self.device, self.kernels, self.limits.max_batched_tokens
        )
        self.sampler = make_sampler(
            self.device, max_num_seqs=self.limits.max_num_seqs, vocab_size=self.loaded.vocab_size,
            has_triton=self.attention_name == "triton",
        )  # fmt: skip
        self._key_offsets = offsets_of_keys(config, self.loaded, problem, shapes, progress, self.notes)
        return shapes

    def forward(self, rows: list[Scheduled]) -> StepInFlight:
        """Launch the forward pass of one step. On a CUDA device it still runs when this returns."""
        return self.launch(rows, self.pack(rows))

    def pack(self, rows: list[Scheduled]) -> HostBatch:
        """One step on the host."""
        return self.builder.pack(rows)

    def launch(self, rows: list[Scheduled], host: HostBatch) -> StepInFlight:
        """Launch the forward pass of a step that is packed."""
        started = time.perf_counter()
        return StepInFlight(self.sample, self.governor, rows, self.run(host), started)

    @torch.inference_mode()
    def run(self, host: HostBatch) -> torch.Tensor:
        """Logits `[R, V]` of a step: of the rows that sample, then of all positions that are scored."""
        if self._ranks is not None and host.unread:
            self._ranks.share(self.builder.last_tokens)
        logits = None if self.padded is None else self.padded.run(host)
        return self._forward(self.builder.upload(host), host) if logits is None else logits

    def encode_images(self, row: Scheduled, seconds: float | None) -> bool:
        """See `Runner.encode_images`."""
        assert self.sight is not None, "images without an encoder are refused"
        return self.sight.encode(row, seconds)

    def rest(self) -> None:
        """See `Runner.rest`."""
        if self.sight is not None:
            self.sight.rest()

    def sleep(self) -> tuple[int, int]:
        """See `Runner.sleep`."""
        if self.padded is not None:
            self.padded.forget()
        freed = 0 if self.sight is None else self.sight.forget()
        caches = (part for cache in self.caches.values() for part in cache.parts)
        self._away = PutAway(tensors_of(self.model), caches, self.device)
        torch.cuda.empty_cache()
        self._agree(True)  # none says that memory is free while another still copies
        return self._away.device_bytes + freed, self._away.host_bytes

    def wake(self) -> None:
        """See `Runner.wake`."""
        assert self._away is not None, "only what sleeps is woken"
        self._away.bring_back()
        self._away = None
        if self.device.type == "cuda":
            self._record(no_progress)

    def close(self) -> None:
        """See `Runner.close`."""

    def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> PendingSample:
        """Launch the sampling of one token for each sequence, which the next forward pass can read."""
        return self.sampler.sample(logits, sequences, self.builder.last_tokens)

    @torch.inference_mode()
    def warm_up(self, progress: Progress = no_progress) -> None:
        """Run every form of step and of sampling, and record what can be, so that no request waits for that."""
        self._record(progress)
        progress("building kernels", None)
        for tokens in self.forms.plain:
            self._try_plain(tokens)
        self.sampler.warm_up(self.dtype)

    def _try_plain(self, tokens: int) -> None:
        """Run a step of one of `StepForms.plain`."""
        rows = plain_step(tokens, max_context=self.context, block_size=self._block_size)
        try:
            self._forward(self._example(rows)[0])
        except torch.OutOfMemoryError:
            if self._ranks is not None:
                raise  # the others wait in the middle of theirs
            logger.warning("no memory for a step of %d tokens at once, which will be several", tokens)

    @torch.inference_mode()
    def _record(self, progress: Progress) -> None:
        if self.padded is not None:
            self.padded.record(progress)

    def _example(self, rows: list[Scheduled]) -> tuple[ForwardBatch, torch.Tensor]:
        """See `on_device`."""
        return on_device(rows, num_slots=self.limits.max_num_seqs, block_size=self._block_size, device=self.device)

    def wipe_blocks(self, blocks: list[int], block_size: int) -> None:
        """Zero the content of blocks, so that a NaN in them cannot outlive the sequence that made it."""
        slots = (np.array(blocks)[:, None] * block_size + np.arange(block_size)).ravel()
        index = torch.from_numpy(slots).to(self.device)
        for cache in self.caches.values():
            cache.wipe(index)

    def _forward(self, batch: ForwardBatch, host: HostBatch | None = None) -> torch.Tensor:
        seen = Seen()
        if host is not None and not host.is_text and self.sight is not None:
            seen = self.sight.see(host, lambda: self.model.get_input_embeddings()(batch.input_ids))
        with attention_step(self.backend, self.caches, batch), looking(seen.looks):
            return self._logits(batch.input_ids, batch.positions, batch.logits_index, seen)

    def _logits(
        self, input_ids: torch.Tensor, positions: torch.Tensor, index: torch.Tensor, seen: Seen | None = None
    ) -> torch.Tensor:
        """See `compute_logits`."""
        return compute_logits(self.model, input_ids, positions, index, seen or Seen())

    def _make_padded(self, *, is_lazy: bool) -> PaddedSteps | None:
        is_hindered = self._records and self.device.type == "cuda" and not self.backend.capturable
        if is_hindered:
            self.notes.append(f"steps are not recorded: attention {self.attention_name} does not allow it")
        pads = self._records and not is_hindered
        self.forms = step_forms(self.limits, self.context, pads=pads)
        if not pads:
            return None
        return PaddedSteps(
            self.builder, self._forward,
            Recorder(self.device, self.limits.max_num_seqs, self._ranks, is_lazy=is_lazy), self.forms,
            max_context=self.context, reads_lengths=self.backend.capturable, device=self.device,
        )  # fmt: skip

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """Tokens of the steps with prompts that cost no padding, in order; none if they are run as they are."""
        return () if self.padded is None else self.padded.mixed.token_sizes

    def _prepare(self, shapes: dict[int, LayerShape], config: EngineConfig, progress: Progress) -> None:
        """Check the model, operate on it, and see how much memory a step takes."""
        progress("fusing operations" if config.fusion else "checking the model", None)
        caches = allocate(
            shapes, num_blocks=CHECK_BLOCKS, block_size=self._block_size, dtype=self.kv_dtype, device=self.device,
            key_offsets=self._key_offsets,
        )  # fmt: skip
        surgery = Surgery(self.loaded, self._logits, self.backend, caches, self._block_size, self._ranks)
        surgery.check()
        if config.fusion:
            surgery.operate(self.kernels)
        round_activations(self.model, 8 if config.activations == "int8" else 16)
        self.notes += surgery.notes
        self.surgery = surgery.changes
        self.launches_per_layer = surgery.launches
        self.activation_bytes = peak_bytes(lambda: self.rehearse(caches), self.device)
        if self.sight is not None:
            progress("encoding an image", None)
            self._rehearse_images(self.sight)
        self.graph_bytes = 0
        if self.device.type == "cuda":
            if self._records:
                self.graph_bytes = graphs_bytes(self.limits, self.loaded.vocab_size, self.dtype.itemsize)
            if config.graphs == "lazy":
                self.graph_bytes += unordered_bytes(self.limits, self.activation_bytes)
            self.activation_bytes += scored_bytes(self.loaded.vocab_size)

    def _rehearse_images(self, sight: Sight) -> None:
        image = sight.try_rehearsal(self._agree)
        if isinstance(image, Rehearsed):
            # Steps run between the slices of an image, not in them.
            self.activation_bytes = max(self.activation_bytes + image.between, image.peak)
            return
        self.notes.append(f"it answers text alone: its tower does not run ({image})")
        self.sight = None

    @torch.inference_mode()
    def rehearse(self, caches: dict[int, LayerCache]) -> Sampled:
        """Run the largest step there may be, sampled in the costliest way; its tokens go to the null block."""
        limits = self.limits
        rows = largest_step(
            max_num_seqs=limits.max_num_seqs, max_batched_tokens=limits.max_batched_tokens, block_size=self._block_size
        )
        batch, last_tokens = self._example(rows)
        with attention_step(self.backend, caches, batch):
            logits = self._logits(batch.input_ids, batch.positions, batch.logits_index)
        return self.sampler.sample(logits, [row.sequence for row in rows], last_tokens).result()

    def _allocate(self, shapes: dict[int, LayerShape], config: EngineConfig, progress: Progress) -> None:
        """Give the KV cache what is left, and fix the context that follows from it."""
        itemsize, is_cuda = self.kv_dtype.itemsize, self.device.type == "cuda"
        token_bytes = bytes_per_token(shapes, itemsize)
        overhead = overhead_bytes(shapes, itemsize, self._block_size, is_cuda=is_cuda)
        reserved = self.activation_bytes + self.graph_bytes + overhead
        torch.cuda.empty_cache()  # what was freed counts as free only now; nothing where CUDA is not in use
        if self.sight is not None:
            self.sight.allocate(reserved)
            reserved += self.sight.num_bytes
        size = size_cache(
            config, token_bytes, self.loaded.max_context, self.device, reserved=reserved, ranks=self._ranks
        )
        if size.note:
            self.notes.append(size.note)
        self.num_blocks, self.context = size.num_blocks, size.context
        self.frozen_rotary = freeze_rotary(self.model, self.context)
        for kind in self.frozen_rotary:
            self.notes.append(f"{kind} rotary scaling is that of a context of {self.context} tokens, for every request")
        progress("allocating the KV cache", None)
        self.caches: dict[int, LayerCache] = allocate(
            shapes, num_blocks=size.num_blocks, block_size=self._block_size, dtype=self.kv_dtype, device=self.device,
            key_offsets=self._key_offsets,
        )  # fmt: skip
        num_ranks = 1 if self._ranks is None else self._ranks.size
        self.kv_bytes = token_bytes * size.num_blocks * self._block_size * num_ranks
