"""One linear alone, in 16 bits, in FP8 by output and in FP8 by block: what it reads and does of what a device does."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bench.gpu.experts import TOKENS, recorded_seconds
from engine.costs import Ceilings
from engine.kernels.reference import FEW_ROWS
from engine.models.fp8 import Fp8Linear
from engine.models.fp8_blocks import BlockFp8Linear

SHAPES = {"7,168 to 2,112": (7168, 2112), "2,048 to 7,168": (2048, 7168), "4,096 to 28,672": (4096, 28672),
          "14,336 to 4,096": (14336, 4096)}  # fmt: skip
"""What makes R1's latents, what takes its heads on one GPU of eight, gate and up of Llama-3.1-8B, and down."""
FORMS = ("16 bits", "FP8 by output", "FP8 by block")
OURS = "FP8 by output, ours"
"""The product for few rows, in each launch shape that may be chosen for it."""
SMALL = {"64 to 96": (64, 96)}
"""For a device that has no such products, so that the measurement can be tried."""
COPIES = 2**28
"""Numbers of a form's weights in one measurement, so that none is in the device's caches."""


def linear_shares(device: torch.device, ceilings: Ceilings | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """By shape, form and tokens of a step, as soon as measured: seconds of one linear, bytes of its weight a second."""
    is_cuda = device.type == "cuda"
    ours: list[str] = []
    if is_cuda:
        from engine.kernels.triton_fp8 import FEW_ROWS_SHAPES  # an installation for CPUs has no triton

        ours = [f"{OURS} {number}" for number in range(len(FEW_ROWS_SHAPES))]
    for name, (inputs, outputs) in (SHAPES if is_cuda else SMALL).items():
        for tokens in TOKENS if is_cuda else (1, 4):
            for form in (*FORMS, *(ours if tokens <= FEW_ROWS else [])):
                label = f"{name}, {form}, {tokens} tokens"
                try:
                    yield label, measure(form, inputs, outputs, tokens, device, ceilings)
                except Exception as error:  # the others still have their turn
                    yield label, {"error": f"{type(error).__name__}: {error}"}


@torch.inference_mode()
def measure(
    form: str, inputs: int, outputs: int, tokens: int, device: torch.device, ceilings: Ceilings | None
) -> dict[str, Any]:
    """A linear of one form in a step of so many tokens; recorded on a GPU."""
    copies = max(1, min(8, COPIES // (inputs * outputs))) if device.type == "cuda" else 1
    linears = [make_linear(form, inputs, outputs, device) for _ in range(copies)]
    x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
    seconds = recorded_seconds([lambda linear=linear: linear(x) for linear in linears], device)
    is_fp8 = form != "16 bits"
    read = inputs * outputs * (1 if is_fp8 else 2)
    one: dict[str, Any] = {"microseconds": seconds * 1e6, "bytes_per_second": read / seconds}
    if ceilings is not None:
        rate = ceilings.fp8_flops if is_fp8 and ceilings.fp8_flops else ceilings.flops
        one["share_of_ceiling"] = (
            max(read / ceilings.bytes_per_second, 2.0 * tokens * inputs * outputs / rate) / seconds
        )
    return one


def make_linear(form: str, inputs: int, outputs: int, device: torch.device) -> nn.Module:
    """With random weights."""
    linear = nn.Linear(inputs, outputs, bias=False, device=device, dtype=torch.bfloat16)
    if form == "16 bits":
        return linear
    if form == "FP8 by block":
        return BlockFp8Linear.quantized(linear.weight, None)
    quantized = Fp8Linear.quantized(linear.weight, None)
    if form.startswith(OURS):
        from engine.kernels.triton_fp8 import FEW_ROWS_SHAPES  # an installation for CPUs has no triton

        quantized.few_rows = dict.fromkeys((1, 8), FEW_ROWS_SHAPES[int(form.rpartition(" ")[2])])
    return quantized
