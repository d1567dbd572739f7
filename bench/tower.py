"""What Qwen2.5-VL's tower costs a processor and those who stream beside it: `python -m bench.tower`. Needs no GPU.

A tower of the model's own width and two layers, one of which sees all patches, before a tiny decoder; an image of
`--side` pixels. Operations of torch are counted for all of its 32 layers, at a width of 64.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bench.image_load import ImageLoad, picture_of
from engine.build import build_engine
from engine.config import EngineConfig
from engine.scheduling.images import PromptImage
from server.benchmarks.record import circumstances, percentile, write_json

DECODER = (
    "text_config.hidden_size=64&text_config.intermediate_size=64&text_config.num_hidden_layers=2"
    "&text_config.num_attention_heads=4&text_config.num_key_value_heads=2&text_config.vocab_size=320"
    "&text_config.rope_parameters.mrope_section=[2,3,3]&text_config.bos_token_id=1&text_config.eos_token_id=2"
    "&image_token_id=310&video_token_id=311&vision_start_token_id=312&vision_end_token_id=313"
    "&vision_config.out_hidden_size=64"
)
WIDE = "vision_config.depth=2&vision_config.fullatt_block_indexes=[1]"
NARROW = "vision_config.hidden_size=64&vision_config.intermediate_size=64&vision_config.num_heads=2"
HEADS, WIDTH, PATCH, OUT = 16, 80, (3, 2, 14, 14), 1280
"""Of the tower: heads and their width, and what makes a patch a state."""
STREAMS = 4


class Counter(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.attentions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `TorchDispatchMode`."""
        self.operations += 1
        self.attentions += "scaled_dot_product_attention" in str(func)
        return func(*args, **(kwargs or {}))


@contextmanager
def engine_of(tower: str, threads: int) -> Iterator[tuple[Any, Any]]:
    """An engine behind such a tower, and what is known of it."""
    source = f"random://Qwen2.5-VL-7B?{DECODER}&{tower}"
    config = EngineConfig(name="bench", source=source, device="cpu", dtype="bfloat16", memory="256MiB", context=8192,
                          threads=threads)  # fmt: skip
    engine, info = build_engine(config, lambda *_: None)
    try:
        yield engine, info
    finally:
        engine.close()


def operations(side: int, threads: int) -> dict[str, int]:
    """Of torch, for an image in all layers of a narrow tower."""
    with engine_of(NARROW, threads) as (engine, info):
        picture = picture_of(info.images, Path(info.model_dir), side)
        ids = tuple(picture.token_ids[picture.first : picture.first + picture.length])
        image = PromptImage(0, picture.length, b"", tuple(picture.grid), tuple(picture.arrays), ids)
        with Counter() as counted:
            engine._runner.sight.encoder.encode(image)
        return {"patches": picture.grid[1] * picture.grid[2], "operations": counted.operations,
                "attentions": counted.attentions}  # fmt: skip


def streams(side: int, threads: int) -> dict[str, float]:
    """Time to first token of a new image, and between tokens of streams beside one, in ms."""
    with engine_of(WIDE, threads) as (engine, info):
        load = ImageLoad(engine, picture_of(info.images, Path(info.model_dir), side))
        load.first_token(1, [8, 9, 10])
        first = load.first_token(2, [8, 9, 10])
        quiet, beside = load.beside(STREAMS, 1)
    return {"first_token": first * 1e3, "quiet_p99": percentile(quiet, 99) * 1e3, "beside_longest": max(beside) * 1e3}


@torch.inference_mode()
def parts(patches: int, threads: int) -> dict[str, float]:
    """Operations of one layer alone, in ms: patches by convolution and by product, attention whole and in pieces."""
    torch.set_num_threads(threads or torch.get_num_threads())
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        convolution = torch.nn.Conv3d(PATCH[0], OUT, PATCH[1:], PATCH[1:], bias=False).to(dtype)
        pixels = torch.randn(patches, *PATCH).to(dtype)
        weight = convolution.weight.flatten(1)
        found[f"convolution {name}"] = best(lambda c=convolution, p=pixels: c(p))
        found[f"product {name}"] = best(lambda p=pixels, w=weight: F.linear(p.flatten(1), w))
    states = torch.randn(1, HEADS, patches, WIDTH).to(torch.bfloat16)
    for size in (64, 128, 256, 384, 768, patches):
        found[f"attention {size}"] = best(
            lambda n=size: torch.cat(
                [F.scaled_dot_product_attention(part, states, states) for part in states.split(n, 2)], 2
            )
        )
    return found


def best(work: Callable[[], object]) -> float:
    """The fastest of three, in ms."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times) * 1e3


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    counted = operations(options.side, options.threads)
    found = {
        "operations": counted,
        "streams": streams(options.side, options.threads),
        "parts": parts(counted["patches"], options.threads),
    }
    for part in found.values():
        print("  ".join(f"{name} {value:,.1f}" for name, value in part.items()))
    if options.json:
        write_json(options.json, {**circumstances(), "found": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
