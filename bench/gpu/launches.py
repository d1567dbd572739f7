"""What launching costs the host, on any machine: kernels are built for Hopper, and a driver that does nothing has them.

    python -m bench.gpu.launches [--tokens 64] [--json FILE]

Steps that are not recorded pay this for each layer. Only our own launches are counted, with the tensors they make: not
cuBLAS's, and not what the driver takes. Each figure is the least of some rounds, in microseconds of the thread's CPU.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from engine.attention.triton import TritonAttention
from engine.device.forward_batch import ForwardBatch
from engine.device.kv_cache import LayerCache
from engine.kernels.triton_layer import activate_mul, add_rms_norm
from engine.kernels.triton_linear import ONE_ROW_SHAPES, small_product
from server.benchmarks.record import circumstances, table, write_json

ROUNDS, CALLS = 20, 100
HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 16
"""Of Llama-3.1-8B. Widths are smaller than its own: nothing is computed."""
WIDTH = 256


class Utils:
    """What Triton asks a driver about."""

    def load_binary(self, *_: object) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, most threads."""
        return 0, 0, 0, 0, 1024

    def get_device_properties(self, _: int) -> dict[str, int]:
        """Of an H100."""
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}


class IdleDriver:
    """Stands where Triton's driver for CUDA does."""

    utils = Utils()

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, _: int) -> int:
        """The only one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Hopper."""
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, *_: object) -> Callable[..., None]:
        """What launches one kernel: nothing."""
        return lambda *_: None


def step(tokens: int) -> ForwardBatch:
    """Half of the tokens decode, the others are one prompt's."""
    decodes = tokens // 2
    lens = torch.tensor([*[100] * decodes, tokens - decodes], dtype=torch.int32)
    return ForwardBatch(
        input_ids=torch.zeros(tokens, dtype=torch.int64),
        positions=torch.arange(tokens),
        slot_mapping=torch.arange(tokens),
        block_tables=torch.zeros(decodes + 1, 64, dtype=torch.int32),
        seqlens_k=lens,
        query_starts=torch.tensor([*range(decodes + 1), tokens], dtype=torch.int32),
        logits_index=torch.zeros(0, dtype=torch.int64),
        query_lens=[*[1] * decodes, tokens - decodes],
        context_lens=lens.tolist(),
        num_decodes=decodes,
    )


def works(tokens: int) -> dict[str, Callable[[], Any]]:
    """What is launched in a layer, by name; a layer has the norm twice."""
    x, weight = torch.zeros(tokens, WIDTH, dtype=torch.bfloat16), torch.zeros(WIDTH, dtype=torch.bfloat16)
    gate_up = torch.zeros(tokens, 2 * WIDTH, dtype=torch.bfloat16)
    matrix = torch.zeros(WIDTH, WIDTH, dtype=torch.bfloat16)
    qkv = torch.zeros(tokens, (HEADS + 2 * KV_HEADS) * DIM, dtype=torch.bfloat16)
    angles = torch.zeros(tokens, DIM, dtype=torch.bfloat16)
    cache = LayerCache(*torch.zeros(2, KV_HEADS, 64 * BLOCK, DIM, dtype=torch.bfloat16))
    backend = TritonAttention(BLOCK, torch.device("cpu"))
    backend.plan(step(tokens))
    return {
        "norm": lambda: add_rms_norm(x, x, weight, 1e-5),
        "activation": lambda: activate_mul(gate_up, "silu"),
        "attention": lambda: backend.run_packed(qkv, angles, angles, cache, heads=HEADS, scaling=1.0),
        "product of one row": lambda: small_product(x[:1], matrix, None, ONE_ROW_SHAPES[0]),
    }


def microseconds(work: Callable[[], Any]) -> float:
    """Of a call, all kernels built."""
    work()
    found = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(CALLS):
            work()
        found.append((time.thread_time() - began) / CALLS * 1e6)
    return round(min(found), 1)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64, help="of a step, half of which decode")
    parser.add_argument("--json", metavar="FILE", help="write what was measured there")
    options = parser.parse_args(arguments)
    driver.set_active(IdleDriver())
    found = {name: microseconds(work) for name, work in works(options.tokens).items()}
    found["a layer, without its products"] = round(2 * found["norm"] + found["activation"] + found["attention"], 1)
    print(table(["launches", "us"], [[name, str(value)] for name, value in found.items()]))
    if options.json:
        write_json(options.json, {**circumstances(), "tokens": options.tokens, "microseconds": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
