"""From pixels to what a model's tower takes, by transformers' own image processors. Runs in a worker.

Always the processors on Pillow: others compute other pixels, and which one is the default depends on what is installed.
Scaling and normalising are left to the engine, so that integers travel.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from engine.messages import ImageArray
from server.images.messages import PreparedImage, PrepareImage

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
RAW = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}


@dataclass(frozen=True, slots=True)
class Cut:
    """An image cut for a model."""

    grid: list[int]
    """The family's measure of its size, as the engine's encoder knows it."""
    token_ids: list[int]
    """What stands in the prompt in the place of the token that the template shows."""
    pixels: np.ndarray[Any, Any]
    """Whole numbers from 0 to 255."""


class Processor(ABC):
    """Cuts images for one model."""

    module: str
    """Of transformers' models, where the image processor is."""
    name: str
    """Of that processor."""

    def __init__(self, directory: Path, token_id: int) -> None:
        """`token_id` is the placeholder that the engine names. Raises what transformers raises for a broken model."""
        self.directory, self.token_id = directory, token_id
        kind = getattr(import_module(f"transformers.models.{self.module}"), self.name)
        self.pil: Any = kind.from_pretrained(directory, local_files_only=True)

    @abstractmethod
    def prepare(self, pixels: Pixels, *, low: bool, alone: bool) -> Cut:
        """Cut an image; with `low` into as few tokens as is sensible. Raises `DecodeError` for one it cannot take.

        `alone` says that no other image is in the conversation, which some families make more tokens of.
        """

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        content: dict[str, Any] = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        return content

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.directory / "tokenizer.json"))

    def encoded(self, text: str) -> list[int]:
        """Token ids of a text, in which control tokens are matched."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def cut(self, pixels: Pixels, **options: Any) -> Any:
        """What transformers' processor makes of an image, but for scaling."""
        return self.pil(Image.fromarray(pixels), **RAW, **options)

    def cut_several(self, pixels: Pixels) -> Any:
        """The same, as the first of several images of a conversation."""
        return self.pil([[Image.fromarray(pixels), Image.new("RGB", (1, 1))]], **RAW)


def prepare(processor: Processor, question: PrepareImage, pixels: Pixels) -> PreparedImage:
    """Cut an image as the model wants it. Raises `DecodeError` for one that it cannot take."""
    cut = processor.prepare(pixels, low=question.detail == "low", alone=question.is_alone)
    # Resampling was done in integers, so the values are whole.
    whole = np.ascontiguousarray(cut.pixels).astype(np.uint8)
    array = ImageArray("pixel_values", list(whole.shape), "uint8", whole.tobytes())
    digest = hashlib.sha256(repr((question.family, question.model_dir, cut.grid, cut.token_ids)).encode())
    for part in (question.salt, f"{array.name}{array.shape}{array.dtype}".encode()):
        digest.update(hashlib.sha256(part).digest())
    digest.update(array.data)
    return PreparedImage(digest.digest(), cut.grid, cut.token_ids, [array])
