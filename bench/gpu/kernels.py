"""Attention alone, of decoding rows and of few queries: keys and values it reads, as a share of a copy's rate."""

from collections.abc import Iterator
from typing import Any

import torch

from engine.attention.choice import Problem, choose_attention, make_batch
from engine.attention.context import AttentionBackend
from engine.attention.reference import ReferenceAttention
from engine.costs import Ceilings
from engine.measuring.ceilings import best_seconds
from engine.sizing.cache import LayerShape

BATCHES = (1, 16, 64)
CONTEXT = 8192
SHAPES = {
    "32 heads on 8 of 128": (32, LayerShape(8, 128, 128)),
    "8 heads on 4 of 256": (8, LayerShape(4, 256, 256)),
    "12 heads on 2 of 128": (12, LayerShape(2, 128, 128)),
    "128 heads on a latent of 512": (128, LayerShape(1, 576, 512, is_latent=True)),
}
"""Llama-3.1-8B, Gemma-2-2b, Qwen2.5-1.5B, DeepSeek-R1."""
UNEVEN = {
    "one of 131,072 among 40": [(1, 512)] * 20 + [(1, 131_072)] + [(1, 512)] * 20,
    "10 queries behind 100,000": [(10, 100_000)],
    "64 queries behind 16,384": [(64, 16_448)],
}
"""Rows of (queries, context) that a program for each tile of queries would be slow with; of the first shape."""
SMALL_UNEVEN = {"one of 40 among 3": [(1, 5), (1, 40), (1, 7)], "3 queries behind 40": [(3, 43)]}
"""For a device that has no such attention, so that the measurement can be tried."""
REPEATS = 10


def attention_shares(device: torch.device, ceilings: Ceilings | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """By shape of heads and batch, as soon as measured: seconds of one layer, bytes of keys and values a second."""
    for name, (heads, shape) in SHAPES.items():
        dtype = torch.bfloat16
        problem = Problem(
            heads, shape.num_kv_heads, shape.k_dim, shape.v_dim, dtype, dtype, 16, is_latent=shape.is_latent
        )
        is_cuda = device.type == "cuda"
        batches, context = (BATCHES, CONTEXT) if is_cuda else ((1, 2), 40)
        cases = {f"batch {batch}": [(1, context)] * batch for batch in batches}
        if name == next(iter(SHAPES)):
            cases |= UNEVEN if is_cuda else SMALL_UNEVEN
        for case, rows in cases.items():
            try:
                if is_cuda:
                    choose_attention(problem, device)
                seconds = attention_seconds(problem, rows, device)
            except Exception as error:  # the other shapes still have their turn
                yield f"{name}, {case}", {"error": f"{type(error).__name__}: {error}"}
                continue
            read = sum(context for _, context in rows) * problem.token_bytes
            one: dict[str, Any] = {"microseconds": seconds * 1e6, "bytes_per_second": read / seconds}
            if ceilings is not None:
                one["share_of_ceiling"] = read / seconds / ceilings.bytes_per_second
            yield f"{name}, {case}", one


@torch.inference_mode()
def attention_seconds(problem: Problem, rows: list[tuple[int, int]], device: torch.device) -> float:
    """One layer's attention of a step of (queries, context) rows, its write of new tokens included; recorded on a GPU.

    Several copies of the cache take turns where one would fit into the device's own caches.
    """
    read = sum(context for _, context in rows) * problem.token_bytes
    copies = max(1, min(REPEATS, 2**29 // read)) if device.type == "cuda" else 1
    inputs = [make_batch(problem, rows, device) for _ in range(copies)]
    backend = attention_backend(problem, device)
    backends = [attention_backend(problem, device) for _ in inputs]
    for planned, made in zip(backends, inputs, strict=True):
        planned.plan(made.forward)

    def launch() -> None:
        for number in range(REPEATS):
            at = number % copies
            made = inputs[at]
            backends[at].run(made.q, made.k, made.v, made.cache, scaling=problem.k_dim**-0.5, softcap=None, window=None)

    if device.type != "cuda" or not backend.capturable:
        return best_seconds(launch, device, 3) / REPEATS
    launch()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return best_seconds(graph.replay, device) / REPEATS


def attention_backend(problem: Problem, device: torch.device) -> AttentionBackend:
    """The one whose kernel is measured; on a CPU one that runs there, so that the measurement can be tried."""
    if device.type != "cuda":
        return ReferenceAttention(problem.block_size)
    from engine.attention.triton import TritonAttention

    return TritonAttention(problem.block_size, device)
