"""Requests about images at one engine, timed: what `make latency` and `bench.gpu` have in common."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.engine import Engine
from engine.messages import AddImage, AddRequest, ImageArray, ImageInfo, ImageSpan
from engine.sampling_params import SamplingParams
from server.images.families import PROCESSORS
from server.images.messages import PrepareImage
from server.images.processor import prepare

WARM_STEPS, QUIET_STEPS = 40, 300
STREAM_TOKENS = 3000


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it comes from a worker. Its pixels do not matter: by number it has another digest each time."""

    grid: list[int]
    arrays: list[ImageArray]
    token_ids: list[int]
    """What stands in the prompt for it."""
    first: int
    """Of these, the first that is the image's."""
    length: int


def picture_of(info: ImageInfo, directory: Path, side: int) -> Picture:
    """A square image of noise as the server's worker cuts it for a model."""
    processor = PROCESSORS[info.family](directory, info.token_id)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    question = PrepareImage(str(directory), info.family, info.token_id, "auto", b"", side * side, side)
    prepared = prepare(processor, question, pixels)
    ids = prepared.token_ids
    first = ids.index(info.token_id)
    length = len(ids) - first - ids[::-1].index(info.token_id)
    return Picture(prepared.grid, prepared.arrays, ids, first, length)


class ImageLoad:
    """Asks one engine about images of one size."""

    def __init__(self, engine: Engine, picture: Picture, stream_tokens: int = STREAM_TOKENS) -> None:
        """`stream_tokens` are answered to each stream at most."""
        self._engine, self._picture, self._stream_tokens = engine, picture, stream_tokens
        self._requests = 0

    def add(self, image: int | None, text: list[int], max_tokens: int, before: tuple[int, ...] = (7,)) -> int:
        """Queue a request about the image of that number, or about none; its number. `before` stands in front of it."""
        self._requests += 1
        tokens, spans = text, []
        if image is not None:
            picture, digest = self._picture, image.to_bytes(8, "little")
            self._engine.add_image(AddImage(digest, picture.grid, picture.arrays))
            spans = [ImageSpan(len(before) + picture.first, picture.length, digest)]
            tokens = [*before, *picture.token_ids, *text]
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        self._engine.add(AddRequest(self._requests, tokens, params, images=spans))
        return self._requests

    def first_token(self, image: int, text: list[int], before: tuple[int, ...] = (7,)) -> float:
        """Seconds until a request alone has its first token."""
        began = time.perf_counter()
        self.add(image, text, 1, before)
        while not self._step():
            pass
        return time.perf_counter() - began

    def beside(self, num_streams: int, num_images: int) -> tuple[list[float], list[float]]:
        """Seconds of each step of so many streams of text: alone, and until so many images are seen."""
        streams = [
            self.add(None, [stream + 20, *range(100, 132)], self._stream_tokens) for stream in range(num_streams)
        ]
        for _ in range(WARM_STEPS):
            self._step()
        quiet = [self._timed() for _ in range(QUIET_STEPS)]
        for image in range(100, 100 + num_images):
            self.add(image, [8, 9, 10], 1)
        beside = []
        while (found := self._engine.stats()).num_waiting or found.num_running > num_streams:
            beside.append(self._timed())
        self._engine.abort(streams)
        self._step()
        return quiet, beside

    def _timed(self) -> float:
        began = time.perf_counter()
        self._step()
        return time.perf_counter() - began

    def _step(self) -> bool:
        """Whether tokens came. Raises RuntimeError where a request failed."""
        outputs = self._engine.step()
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(output.error)
        return any(output.token_ids for output in outputs)
