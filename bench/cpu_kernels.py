"""What the CPU's products with quantised weights and its attention of prompts take: `python -m bench.cpu_kernels`.

    python -m bench.cpu_kernels [--threads 1] [--rounds 40] [--json FILE]

What is compared is done in turn, round by round, and of each the least is told, so that other work on the machine
disturbs both alike. Products: weights of 1,536 by 768, which stay in the cache, activations in 16 and in 8 bits;
thousand millions of weights times rows a second. Attention: our tiles of queries, and SDPA's path with its gathering of
blocks, of sequences whose blocks lie here and there, and that of rows with one query, on latents beside plain torch;
milliseconds of one layer.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from engine.attention.cpu_torch import TorchDecode
from engine.attention.sdpa import Run, attend_in_chunks
from engine.device.kv_cache import LayerCache
from engine.kernels.cpu import CpuKernels, load_kernels
from engine.kernels.cpu_quantized import ACTIVATION_BITS, FORMATS, QuantizedProduct, Room, pack
from server.benchmarks.record import circumstances, table, write_json

OUTPUTS, SIZE = 1536, 768
ROWS = (1, 4, 16, 64)
CASES = (
    (9, 3, 64, 512, 512), (9, 3, 64, 16, 6000), (9, 3, 64, 128, 4000), (12, 2, 128, 256, 256), (12, 2, 128, 16, 6000),
)  # fmt: skip
"""Heads, those of keys, their width, queries, and the tokens of the sequence."""
DECODING = ((9, 3, 64, 8, 64), (9, 3, 64, 8, 700), (9, 3, 64, 1, 6000), (12, 2, 128, 4, 300), (32, 8, 128, 1, 2000))
"""Heads, those of keys, their width, rows, and the tokens that each sees."""
LATENTS = ((16, 4, 700), (128, 1, 700))
"""Heads, rows, and the tokens that each sees; of DeepSeek V2 Lite and of DeepSeek-R1."""
LATENT, TURNED = 512, 64
BLOCK_SIZE = 16


def least(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each call, the least of so many rounds."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def product_of(number: int, bits: int) -> QuantizedProduct:
    """A product with weights of GGUF's format `number`, which are nothing in particular."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    elements, size_of = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
    blocks = np.full((OUTPUTS, SIZE // elements * size_of), 0x11, np.uint8)
    product = QuantizedProduct([pack(blocks, number, SIZE, Room())])
    product.round_to(bits)
    return product


def products(rounds: int) -> list[dict[str, Any]]:
    """Rates of each format, number of rows, and kind of activations."""
    found = []
    for number, name in FORMATS.items():
        by_bits = {bits: product_of(number, bits) for bits in ACTIVATION_BITS}
        for rows in ROWS:
            x = torch.randn(rows, SIZE)
            times = least({str(bits): partial(product, x) for bits, product in by_bits.items()}, rounds)
            rates = {bits: rows * OUTPUTS * SIZE / seconds / 1e9 for bits, seconds in times.items()}
            found.append({"format": name, "rows": rows, "rates": rates})
    return found


def attention_calls(
    kernels: CpuKernels, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, run: Run
) -> dict[str, Callable[[], Any]]:
    """The same attention in both ways: q `[n, H, D]`, caches `[KV, num_slots, D]`."""
    table, scaling = run.blocks.to(torch.int32), q.shape[2] ** -0.5
    return {
        "tiles": lambda: kernels.attend_prompt(
            q, k, v, table, context_len=run.context_len, block_size=BLOCK_SIZE, scaling=scaling, softcap=None,
            window=None,
        ),
        "SDPA": lambda: attend_in_chunks(
            q.transpose(0, 1), *run.gather(LayerCache(k, v)), run, scaling, None, None
        ),
    }  # fmt: skip


def attention(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each case, with our kernel and with SDPA's path."""
    kernels = load_kernels(torch.float32)
    assert kernels is not None
    found = []
    for heads, kv_heads, dim, queries, context in CASES:
        count = -(-context // BLOCK_SIZE)
        blocks = torch.randperm(2 * count)[:count]
        k, v = (torch.randn(kv_heads, 2 * count * BLOCK_SIZE, dim) for _ in range(2))
        q, run = torch.randn(queries, heads, dim), Run(slice(0, queries), blocks, BLOCK_SIZE, context)
        times = least(attention_calls(kernels, q, k, v, run), max(3, rounds // 4))
        case = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "queries": queries, "context": context}
        found.append({**case, "ms": {name: seconds * 1e3 for name, seconds in times.items()}})
    return found


def decoding(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a layer's attention for rows with a query each, in fp32 and in bf16."""
    found = []
    for heads, kv_heads, dim, rows, context in DECODING:
        blocks = -(-context // BLOCK_SIZE)
        tables = torch.randperm(rows * blocks).view(rows, blocks).int()
        lens = torch.full((rows,), context, dtype=torch.int32)
        calls: dict[str, Callable[[], Any]] = {}
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            kernels = load_kernels(dtype)
            assert kernels is not None
            k, v = (torch.randn(kv_heads, rows * blocks * BLOCK_SIZE, dim).to(dtype) for _ in range(2))
            calls[name] = partial(
                kernels.paged_decode, torch.randn(rows, heads, dim).to(dtype), k, v, tables, lens,
                block_size=BLOCK_SIZE, scaling=dim**-0.5, softcap=None, window=None,
            )  # fmt: skip
        case = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "rows": rows, "context": context}
        found.append({**case, "ms": {name: seconds * 1e3 for name, seconds in least(calls, rounds).items()}})
    return found


def latents(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a layer's attention on latents, by our kernel and by plain torch."""
    found = []
    for heads, rows, context in LATENTS:
        blocks = -(-context // BLOCK_SIZE)
        tables = (torch.randperm(rows * blocks) + 1).view(rows, blocks).int()
        lens = torch.full((rows,), context, dtype=torch.int32)
        batch: Any = SimpleNamespace(context_lens=lens.tolist(), num_decodes=rows, block_tables=tables)
        calls: dict[str, Callable[[], Any]] = {}
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            kernels, plain = load_kernels(dtype), TorchDecode(BLOCK_SIZE)
            assert kernels is not None
            plain.plan(batch)
            keys = torch.randn(1, (rows * blocks + 1) * BLOCK_SIZE, LATENT + TURNED).to(dtype)
            cache, q = LayerCache.of_latents(keys, LATENT), torch.randn(rows, heads, LATENT + TURNED).to(dtype)
            calls[name] = partial(
                kernels.paged_decode, q, cache.k, cache.v, tables, lens, block_size=BLOCK_SIZE, scaling=0.1,
                softcap=None, window=None,
            )  # fmt: skip
            calls[f"torch, {name}"] = partial(plain.run, q.transpose(0, 1), cache, 0.1, None, None)
        case = {"heads": heads, "rows": rows, "context": context}
        found.append({**case, "ms": {name: seconds * 1e3 for name, seconds in least(calls, rounds).items()}})
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = {
        "products": products(options.rounds),
        "attention": attention(options.rounds),
        "decoding": decoding(options.rounds),
        "latents": latents(options.rounds),
    }
    rows = [
        [one["format"], str(one["rows"]), *(f"{one['rates'][str(bits)]:.0f}" for bits in (16, 8))]
        for one in measured["products"]
    ]
    print(table(["weights", "rows", "16 bits, G/s", "8 bits, G/s"], rows))
    cases = [
        [f"{one['heads']} on {one['kv_heads']} of {one['dim']}", f"{one['queries']} of {one['context']}",
         *(f"{one['ms'][name]:.2f}" for name in ("tiles", "SDPA"))]
        for one in measured["attention"]
    ]  # fmt: skip
    print(table(["heads", "tokens", "tiles, ms", "SDPA, ms"], cases))
    rows = [
        [f"{one['heads']} on {one['kv_heads']} of {one['dim']}", f"{one['rows']} with {one['context']}",
         *(f"{one['ms'][name]:.3f}" for name in ("fp32", "bf16"))]
        for one in measured["decoding"]
    ]  # fmt: skip
    print(table(["heads", "rows with tokens", "fp32, ms", "bf16, ms"], rows))
    rows = [
        [str(one["heads"]), f"{one['rows']} with {one['context']}", *(f"{ms:.3f}" for ms in one["ms"].values())]
        for one in measured["latents"]
    ]
    columns = [f"{name}, ms" for name in measured["latents"][0]["ms"]]
    print(table(["heads on a latent", "rows with tokens", *columns], rows))
    if options.json:
        write_json(options.json, {**circumstances(), "options": vars(options), **measured})
    return 0


if __name__ == "__main__":
    sys.exit(main())
