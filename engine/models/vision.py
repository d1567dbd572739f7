"""Towers: from an image's pixels to the embeddings that stand where its placeholder tokens are.

A family is known by the model type of its configuration, and says three things: how many tokens an image has, where
they stand for the rotary embedding, and how transformers' own `get_image_features` is called. Pixels come as integers,
as the family's image processor cuts them, and are scaled here, in fp32 as the processor itself would.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from engine.errors import RequestError
from engine.messages import ImageArray, ImageInfo
from engine.models.loader import LoadedModel
from engine.scheduling.images import Placement, PromptImage

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP, which is what most processors scale by where their configuration does not say."""


class ImageEncoder(ABC):
    """Encodes the images of one model."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Raises nothing: what the checkpoint does not say has defaults."""
        self._model: Any = loaded.model
        self._config: Any = loaded.hf_config
        self.device: torch.device = loaded.model.device
        mean, std = _scaling(loaded.directory)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device)

    family: ClassVar[str]
    """By this name the API process knows how to cut images."""

    @property
    def info(self) -> ImageInfo:
        """What the API process must know."""
        return ImageInfo(self.family, int(self._config.image_token_id))

    @abstractmethod
    def num_tokens(self, grid: tuple[int, ...]) -> int:
        """Placeholder tokens of an image of that size."""

    @abstractmethod
    def place(self, num_tokens: int, images: tuple[PromptImage, ...]) -> Placement | None:
        """Where the tokens of a prompt stand; None where that is their place in the text."""

    @abstractmethod
    def features(self, image: PromptImage) -> torch.Tensor:
        """Embeddings `[length, hidden]` of an image."""

    def check(self, images: tuple[PromptImage, ...]) -> None:
        """Raise `RequestError` unless every image has the tokens and pixels that its size says."""
        for number, image in enumerate(images):
            if self.num_tokens(image.grid) != image.length:
                raise RequestError(f"image {number} of the prompt has not the tokens of its size", param="messages")
            for array in image.arrays:
                if int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize != len(array.data):
                    raise RequestError(f"image {number} of the prompt is incomplete", param="messages")

    @torch.inference_mode()
    def encode(self, image: PromptImage) -> torch.Tensor:
        """Embeddings `[length, hidden]` of an image, in the dtype of the tower."""
        found = self.features(image)
        assert found.shape[0] == image.length, "the tower gives another number of embeddings than the prompt has tokens"
        return found


class QwenEncoder(ImageEncoder):
    """Qwen2-VL, Qwen2.5-VL: patches of 14 by 14 over a grid, merged two by two; rotary places in three directions.

    `grid` is (time, height, width) in patches; the array `pixel_values` is uint8 `[patches, channels, 1, size, size]`,
    without the second of two equal frames.
    """

    family = "qwen2_vl"

    def num_tokens(self, grid: tuple[int, ...]) -> int:
        """A token for each group of merged patches."""
        merge = self._config.vision_config.spatial_merge_size
        if len(grid) != 3 or grid[0] != 1 or min(grid) < 1 or grid[1] % merge or grid[2] % merge:
            return 0
        return int(grid[1] * grid[2] // merge**2)

    def place(self, num_tokens: int, images: tuple[PromptImage, ...]) -> Placement | None:
        """Text counts on in all three; an image stays at one time, and what follows it begins behind its longer side.

        As in section 2.1 of arXiv 2409.12191, and in transformers' `get_rope_index`.
        """
        if not images:
            return None
        merge = self._config.vision_config.spatial_merge_size
        positions = np.empty((3, num_tokens), dtype=np.int64)
        done = place = 0
        for image in images:
            text = image.start - done
            positions[:, done : image.start] = place + np.arange(text)
            place += text
            height, width = image.grid[1] // merge, image.grid[2] // merge
            positions[:, image.start : image.end] = place + np.stack(
                [np.zeros(height * width, np.int64), *(axis.ravel() for axis in np.mgrid[:height, :width])]
            )
            place += max(height, width)
            done = image.end
        positions[:, done:] = place + np.arange(num_tokens - done)
        return Placement(positions, delta=place - done)

    def features(self, image: PromptImage) -> torch.Tensor:
        """The tower's output after merging."""
        (array,) = image.arrays
        frames = self._config.vision_config.temporal_patch_size
        pixels = (tensor_of(array, self.device).float() / 255 - self._mean.view(-1, 1, 1, 1)) / self._std.view(
            -1, 1, 1, 1
        )
        patches = pixels.expand(-1, -1, frames, -1, -1).flatten(1)
        grid = torch.tensor([image.grid], device=self.device)
        return torch.cat(list(self._model.get_image_features(patches, grid).pooler_output))


FAMILIES: dict[str, type[ImageEncoder]] = {"qwen2_vl": QwenEncoder, "qwen2_5_vl": QwenEncoder}


def make_encoder(loaded: LoadedModel) -> ImageEncoder | None:
    """The encoder of a model that sees, None for one that does not, or in a way that is not known here."""
    family = FAMILIES.get(str(getattr(loaded.hf_config, "model_type", "")))
    return None if family is None else family(loaded)


def tensor_of(array: ImageArray, device: torch.device) -> torch.Tensor:
    """An array of an image on the device."""
    values = np.frombuffer(array.data, dtype=array.dtype).reshape(array.shape)
    return torch.from_numpy(values.copy()).to(device)


def _scaling(directory: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation by channel, as the model's image processor has them."""
    try:
        content = json.loads((directory / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    return list(content.get("image_mean") or CLIP_MEAN), list(content.get("image_std") or CLIP_STD)
