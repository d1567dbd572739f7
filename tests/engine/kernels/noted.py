"""What engines would launch on a GPU, on a machine without: kernels are noted as Triton would build them, and not run.

So nothing that comes out has a meaning, and whatever an engine holds against what came out is taken as right. Models
may be as wide as real ones, and steps as large.
"""

import itertools
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from engine.attention.choice import Choice
from engine.config import EngineConfig
from engine.execution import model_runner
from engine.execution.model_runner import ModelRunner
from engine.kernels import launches, triton_fp8
from engine.models import cuda_layer, experts, fp8, fp8_blocks, fusion, latent_attention, small_products, surgery
from engine.models.fp8 import Fp8Linear
from engine.models.fp8_blocks import BlockFp8Linear
from engine.models.fp8_offsets import InputMean
from engine.sampling_params import SamplingParams
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.sequence import Sequence
from tests.engine.sampling.reference import MIXES

BACKEND = make_backend(GPUTarget("cuda", 90, 32))


@dataclass(frozen=True)
class Build:
    """What Triton would build a kernel for."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]
    """As they were given: warps, stages."""


@dataclass
class Noted:
    """Launches that differ in what is built for them, by how Triton tells them apart."""

    builds: dict[tuple[str, str], Build] = field(default_factory=dict)
    binders: dict[Any, Any] = field(default_factory=dict)

    def note(self, kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """A launch."""
        if kernel not in self.binders:
            self.binders[kernel] = create_function_from_signature(kernel.signature, kernel.params, BACKEND)
        bound, kinds, rest = self.binders[kernel](*arguments, **options)
        key = kernel.fn.__name__, f"{kinds} {sorted(rest.items())}"
        if "token_ids" in kernel.arg_names:  # which torch goes on with
            bound["token_ids"].zero_()
        if key not in self.builds:
            _, signature, constants, attributes = kernel._pack_args(BACKEND, rest, bound, kinds, rest)
            self.builds[key] = Build(kernel, signature, constants, attributes, rest)


def _block_product(linear: BlockFp8Linear, rows: torch.Tensor) -> torch.Tensor:
    """As on a GPU."""
    return triton_fp8.block_product(rows.contiguous(), linear.weight, linear.scale, linear.bias)


def _rows_in_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_zeros(len(x), 1, dtype=torch.float32)


def _blocks_in_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_zeros(*(-(-side // 128) for side in x.shape)).float()


def _zeros_like(
    x: torch.Tensor, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Memory that nobody has touched."""
    return torch.zeros(x.shape, dtype=dtype or x.dtype, device=device or x.device)


_CHEAP: tuple[tuple[Any, str, Any], ...] = (
    (torch, "bmm", lambda x, y: x.new_zeros(*x.shape[:2], y.shape[2])),
    (torch.nn.functional, "linear", lambda x, weight, bias=None: x.new_zeros(*x.shape[:-1], len(weight))),
    (torch, "zeros_like", _zeros_like),
    (torch.nn.init, "_no_grad_normal_", lambda tensor, *_: tensor),
    (fp8, "quantize_rows", _rows_in_fp8),
    (InputMean, "add", lambda self, rows: setattr(self, "count", len(rows))),
    (fp8, "offset", lambda weight, *_: weight.new_zeros(len(weight))),
    (fp8_blocks, "quantize_blocks", _blocks_in_fp8),
    (experts, "quantize_blocks", _blocks_in_fp8),
    (Fp8Linear, "_plain_product", lambda self, x: torch.zeros(len(x.numbers), len(self.weight), dtype=x.dtype)),
    (BlockFp8Linear, "plain_product", _block_product),
)
"""What torch draws, rounds and multiplies, which has no meaning either, and would take long."""


@contextmanager
def noting() -> Iterator[Noted]:
    """Inside, engines with the Triton backend launch nothing, and load whatever they are given."""
    found, times = Noted(), itertools.count(start=10**6, step=-1)

    def timer(works: list[Any]) -> float:
        works[0]()
        return float(next(times))  # so each shape is faster than those before it

    with ExitStack() as patches:

        def patch(place: Any, name: str, value: Any) -> None:
            patches.enter_context(mock.patch.object(place, name, value))

        patch(launches, "_launch", lambda kernel, grid, arguments, options: found.note(kernel, arguments, options))
        patch(small_products, "graph_seconds", timer)
        patch(small_products, "GAIN", 2.0)
        for place, name in ((small_products, "spread_error"), (fusion, "moved")):
            patch(place, name, lambda *_: 0.0)
        patch(model_runner, "select_attention", lambda *_: Choice("triton"))
        patch(surgery, "check_batching", lambda *_: None)
        patch(cuda_layer, "rounds_alike", lambda *_: True)
        for place, name, value in _CHEAP:
            patch(place, name, value)
        for place in (surgery, latent_attention):
            patch(place, "whole_rows", lambda _: nullcontext())
        yield found


def load(source: str | Path, **options: Any) -> ModelRunner:
    """A model as it is on a GPU once it is loaded. Inside `noting`."""
    settings = {"dtype": "bfloat16", "device": "cpu", "threads": 1, "attention": "triton", "graphs": True, **options}
    config = EngineConfig(name="noted", source=str(source), **settings)
    runner = ModelRunner(config, lambda *_: None)
    runner.warm_up()
    return runner


def some_step(runner: ModelRunner, dice: random.Random) -> list[Scheduled]:
    """Rows as the scheduler may choose them: some that decode, then parts of prompts, sampled and scored in any way."""
    limits, rows = runner.limits, []
    tokens = dice.choice([1, 2, 3, 5, 9, 17, 40, 130, limits.max_batched_tokens])
    left = min(limits.max_batched_tokens, tokens)
    for slot in range(dice.randint(1, limits.max_num_seqs)):
        if left == 0:
            break
        is_decode = slot < dice.choice([0, 0, limits.max_num_seqs]) or left == 1
        length = 1 if is_decode else dice.randint(1, min(left, runner.context - 1))
        rows.append(_some_row(runner, dice, slot, length))
        left -= length
    return sorted(rows, key=lambda row: row.num_tokens > 1)


def _some_row(runner: ModelRunner, dice: random.Random, slot: int, length: int) -> Scheduled:
    before = dice.choice([0, dice.randint(0, runner.context - length - 1)])
    more = dice.choice([0, 0, 1])
    params = dice.choice([*MIXES.values(), SamplingParams(max_tokens=2, logprobs=3, prompt_logprobs=2)])
    ids = [3 + number % 200 for number in range(min(runner.context - 1, before + length + more))]
    sequence = Sequence(request_id=slot, prompt_token_ids=ids, params=params, seed=slot, max_len=len(ids) + 1)
    sequence.slot, sequence.num_computed_tokens = slot, before
    sequence.block_table = [1 + dice.randrange(runner.num_blocks - 1) for _ in range(-(-len(ids) // 16))]
    return Scheduled(sequence, length)


@torch.inference_mode()
def take(runner: ModelRunner, rows: list[Scheduled]) -> None:
    """Launch a step and its sampling."""
    step = runner.forward(rows)
    step.sample([row for row in rows if row.samples], [row for row in rows if row.scored])
