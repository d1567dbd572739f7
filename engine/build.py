"""Puts an engine together from its configuration: runner, blocks, scheduler."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import transformers

from engine import version
from engine.cache import Progress
from engine.config import EngineConfig
from engine.engine import Engine
from engine.execution.model_runner import ModelRunner
from engine.messages import EngineInfo
from engine.models.loaded import LoadedModel
from engine.ranks.leader import LeadingRunner, lead
from engine.ranks.team import Team
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.scheduler import Scheduler

if TYPE_CHECKING:
    from engine.grammar.compiler import GrammarCompiler

logger = logging.getLogger(__name__)


def build_engine(
    config: EngineConfig, progress: Progress, *, wake: Callable[[], None] = lambda: None, team: Team | None = None
) -> tuple[Engine, EngineInfo]:
    """Load the model and make an engine around it. Raises ConfigError, ModelLoadError.

    `wake` is called from another thread when an engine without other work has something to do. The `team` of the other
    ranks, where there are such, is started here if it is not given.
    """
    if config.tensor_parallel > 1 and team is None:
        team = Team.start(config)
    runner = ModelRunner(config, progress) if team is None else lead(config, progress, team)
    blocks = BlockManager(runner.num_blocks, config.block_size, prefix_cache=config.prefix_cache)
    limits = runner.limits
    scheduler = Scheduler(
        blocks,
        max_num_seqs=limits.max_num_seqs,
        max_batched_tokens=limits.max_batched_tokens,
        max_prefill_tokens=limits.max_prefill_tokens,
        step_sizes=runner.step_sizes,
        shelf=None if runner.sight is None else runner.sight.shelf,
    )
    encoder = None if runner.sight is None else runner.sight.encoder
    loaded = runner.loaded
    engine = Engine(
        runner if team is None else LeadingRunner(runner, team),
        scheduler,
        context=runner.context,
        vocab_size=loaded.vocab_size,
        eos_token_ids=frozenset(loaded.eos_token_ids),
        max_queued=config.max_queued_requests,
        overlap=runner.device.type == "cuda" if config.overlap is None else config.overlap,
        compiler=_make_compiler(config, loaded, wake),
        min_prefill_tokens=limits.min_prefill_tokens,
        encoder=encoder,
    )
    return engine, _info_of(config, runner)


def _info_of(config: EngineConfig, runner: ModelRunner) -> EngineInfo:
    """What the API process is told of a model."""
    loaded, sight = runner.loaded, runner.sight
    dtype = str(runner.dtype).removeprefix("torch.")
    return EngineInfo(
        name=config.name,
        model_dir=str(loaded.directory),
        architecture=loaded.architecture,
        context=runner.context,
        vocab_size=loaded.vocab_size,
        eos_token_ids=sorted(loaded.eos_token_ids),
        device=str(runner.device),
        dtype=dtype,
        attention=runner.attention_name,
        block_size=config.block_size,
        num_blocks=runner.num_blocks,
        max_num_seqs=runner.limits.max_num_seqs,
        weights_bytes=loaded.weights_bytes,
        activation_bytes=runner.activation_bytes,
        graph_bytes=runner.graph_bytes,
        image_bytes=0 if sight is None else sight.num_bytes,
        kv_bytes=runner.kv_bytes,
        num_parameters=loaded.num_parameters,
        load_seconds=0.0,
        generation_defaults=loaded.generation_defaults,
        numerics=_numerics(config, runner),
        notes=runner.notes,
        images=None if sight is None else sight.encoder.info,
        ranks=config.tensor_parallel,
    )


def _make_compiler(config: EngineConfig, loaded: LoadedModel, wake: Callable[[], None]) -> "GrammarCompiler | None":
    """None where the libraries behind constraints are not installed; requests with one are refused then."""
    try:
        from engine.grammar.compiler import GrammarCompiler
    except ModuleNotFoundError as error:
        if error.name not in ("llguidance", "outlines_core"):
            raise
        logger.warning("constraints are not available: %s is not installed", error.name)
        return None
    return GrammarCompiler(
        loaded.directory,
        vocab_size=loaded.vocab_size,
        eos_token_ids=frozenset(loaded.eos_token_ids),
        backend=config.constraints,
        on_done=wake,
    )


def _numerics(config: EngineConfig, runner: ModelRunner) -> str:
    """Names everything that can change the numbers: the weights, what computes them and how.

    Not how steps follow each other, nor how many requests share one.
    """
    loaded, device = runner.loaded, runner.device
    is_cuda = device.type == "cuda"
    return "/".join(
        (
            config.source,
            config.revision or "",
            loaded.directory.name,  # of a snapshot from the hub it is the commit
            str(loaded.weights_bytes),
            str(runner.dtype),
            torch.cuda.get_device_name(device) if is_cuda else f"CPU {torch.backends.cpu.get_cpu_capability()}",
            f"quantization={config.quantization}",
            f"kv={config.kv_dtype}",
            *([f"ranks={config.tensor_parallel}"] if config.tensor_parallel > 1 else []),
            str(runner.attention),
            f"block_size={config.block_size}",
            f"kernels={runner.kernels is not None}",
            f"surgery={','.join(runner.surgery)}",
            f"rotary={runner.context if runner.frozen_rotary else ''}",
            f"headrace={version()}",
            f"torch={torch.__version__}",
            f"transformers={transformers.__version__}",
        )
    )
