"""What an image costs at full size: its tower alone, the first token, new and seen before, and streams beside it."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu.engines import EngineBench
from bench.gpu.limits import LeftOut
from bench.image_load import ImageLoad, picture_of
from engine.costs import Ceilings
from engine.device.timing import synchronize
from engine.scheduling.images import PromptImage
from server.benchmarks.record import percentile

SIDE = 1000
"""Of the images, in pixels: a megapixel, as docs/models.md counts tokens of one."""
ROUNDS = 5
STREAMS, IMAGES = 8, 10
ROOM = 64
"""Tokens of text beside an image, and in front of a stream."""
QUESTION = list(range(10, 34))
OTHER_QUESTION = list(range(40, 64))
OTHER_TEXT = tuple(range(70, 86))


class SightBench:
    """Images of a model that is loaded. Raises LeftOut for one that takes none."""

    def __init__(self, bench: EngineBench, device: torch.device, ceilings: Ceilings | None) -> None:
        info = bench.info
        if info.images is None:
            raise LeftOut("; ".join(["it takes no images", *info.notes]))
        assert bench.runner.sight is not None
        self._encoder = bench.runner.sight.encoder
        self._picture = picture_of(info.images, Path(info.model_dir), SIDE)
        if info.context < len(self._picture.token_ids) + ROOM:
            raise LeftOut(f"an image has {len(self._picture.token_ids)} tokens, and the context is {info.context}")
        self._load = ImageLoad(bench.engine, self._picture, info.context - ROOM)
        self._device, self._ceilings = device, ceilings
        self._streams = min(STREAMS, info.max_num_seqs - 1)

    def parts(self) -> list[tuple[str, Callable[[], dict[str, float]]]]:
        """What is measured, by name."""
        return [("image encode", self.encode), ("image first token", self.first_token),
                ("image beside streams", self.beside_streams)]  # fmt: skip

    def encode(self) -> dict[str, float]:
        """The tower alone, and its operations as torch counts them, as a share of the products' rate."""
        picture = self._picture
        ids = tuple(picture.token_ids[picture.first : picture.first + picture.length])
        image = PromptImage(0, picture.length, b"", tuple(picture.grid), tuple(picture.arrays), ids)
        with FlopCounterMode(display=False) as counted:
            self._encoder.encode(image)
        times = []
        for _ in range(ROUNDS):
            synchronize(self._device)
            began = time.perf_counter()
            self._encoder.encode(image)
            synchronize(self._device)
            times.append(time.perf_counter() - began)
        seconds = median(times)
        found = {"milliseconds": seconds * 1e3, "tokens": float(picture.length), "pixels": float(SIDE * SIDE)}
        found["flops"] = float(counted.get_total_flops())
        if self._ceilings is not None:
            found["share_of_ceiling"] = found["flops"] / self._ceilings.flops / seconds
        return found

    def first_token(self) -> dict[str, float]:
        """Time to first token alone: of an image that is new, of one seen behind other text, and of its next turn."""
        ask = self._load.first_token
        ask(1, QUESTION)
        new = [ask(image, QUESTION) for image in range(2, 2 + ROUNDS)]
        elsewhere = [ask(image, QUESTION, OTHER_TEXT) for image in range(2, 2 + ROUNDS)]
        turn = [ask(image, OTHER_QUESTION) for image in range(2, 2 + ROUNDS)]
        found = {"milliseconds": median(new), "seen_milliseconds": median(elsewhere), "turn_milliseconds": median(turn)}
        return {name: seconds * 1e3 for name, seconds in found.items()}

    def beside_streams(self) -> dict[str, float]:
        """Inter-token latency of streams of text: alone, and while images that are all new are encoded."""
        quiet, beside = self._load.beside(self._streams, IMAGES)
        return {
            "quiet_milliseconds_p99": percentile(quiet, 99) * 1e3, "milliseconds_p99": percentile(beside, 99) * 1e3,
            "quiet_milliseconds": median(quiet) * 1e3, "milliseconds": median(beside) * 1e3,
            "steps": float(len(beside)), "images_per_second": IMAGES / sum(beside), "streams": float(self._streams),
        }  # fmt: skip
