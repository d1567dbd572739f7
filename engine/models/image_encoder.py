"""How a tower is called: from an image's pixels to what the language model makes use of.

A family says three things: how many tokens an image has, where they stand for the rotary embedding, and how
transformers' own tower is called. Pixels come as integers, as the family's image processor cuts them, and are scaled
here, in fp32 as the processor itself would.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from engine.errors import RequestError
from engine.messages import ImageArray, ImageInfo
from engine.models.loaded import LoadedModel
from engine.scheduling.images import ImageRows, Placement, PromptImage
from engine.weights.seeing import PROCESSING_FILES

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and deviation by channel of OpenAI's CLIP."""
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""To between -1 and 1."""
Scaling = tuple[tuple[float, ...], tuple[float, ...]]


class ImageEncoder(ABC):
    """Encodes the images of one model."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Raises nothing: what the checkpoint does not say has defaults."""
        self._model: Any = loaded.model
        self._config: Any = loaded.hf_config
        self.device: torch.device = loaded.model.device
        self._processing = _processing(loaded.directory)
        mean, std = _scaling(self._processing, self.scaling)
        self._mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self._std = torch.tensor(std, dtype=torch.float32, device=self.device)

    family: ClassVar[str]
    """By this name the API process knows how to cut images."""
    scaling: ClassVar[Scaling] = CLIP
    """Where the checkpoint does not say."""
    crosses: ClassVar[bool] = False
    """Tokens look at images in layers of cross attention, instead of standing for them."""
    both_ways: ClassVar[bool] = False
    """The tokens of an image attend to each other in both directions."""

    @property
    def info(self) -> ImageInfo:
        """What the API process must know."""
        return ImageInfo(self.family, self.token_id, self.token_id)

    @property
    def token_id(self) -> int:
        """Id of the placeholder. It may lie behind those that have logits."""
        config = self._config
        return int(getattr(config, "image_token_id", None) or config.image_token_index)

    @abstractmethod
    def num_tokens(self, grid: tuple[int, ...]) -> int:
        """Placeholder tokens of an image of that size; 0 for a size that no image has."""

    @abstractmethod
    def place(self, num_tokens: int, images: tuple[PromptImage, ...]) -> Placement | None:
        """Where the tokens of a prompt stand; None where that is their place in the text."""

    @abstractmethod
    def features(self, image: PromptImage) -> torch.Tensor:
        """Embeddings `[placeholders, hidden]` of an image; states `[states, hidden]` to look at where it `crosses`."""

    @abstractmethod
    def example_shape(self, most_tokens: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Grid and shape of the pixels of the largest image there may be, of about so many tokens at most.

        None: of a small one.
        """

    def example(self, most_tokens: int | None) -> PromptImage:
        """An image of nothing in that size."""
        grid, shape = self.example_shape(most_tokens)
        array = ImageArray("pixel_values", list(shape), "uint8", bytes(int(np.prod(shape))))
        length = self.num_tokens(grid)
        return PromptImage(0, length, b"example", grid, (array,), (self.token_id,) * length)

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """What is kept of one token of an image."""
        return int(self._config.get_text_config().hidden_size) * dtype.itemsize

    @property
    def _side(self) -> int:
        """Of the tower's squares, in pixels."""
        side = self._config.vision_config.image_size
        return int(side[0] if isinstance(side, list | tuple) else side)

    def deep_inputs(self, deep: torch.Tensor, images: list[ImageRows], num_tokens: int) -> dict[str, Any]:
        """What the decoder is given beside embeddings, for a step of `num_tokens` tokens: nothing, in most families.

        `deep` `[image tokens, more]` is what `features` gave behind the embeddings of the `images`.
        """
        return {}

    def num_units(self, grid: tuple[int, ...]) -> int:
        """What an image of that size takes of the room for those that tokens look at; only of one that `crosses`."""
        raise NotImplementedError

    @property
    def max_units(self) -> int:
        """Those of the largest image."""
        raise NotImplementedError

    @property
    def states_of_unit(self) -> int:
        """States of one unit of that room."""
        raise NotImplementedError

    def check(self, images: tuple[PromptImage, ...]) -> None:
        """Raise `RequestError` unless every image has the tokens and pixels that its size says."""
        for number, image in enumerate(images):
            if not 0 < self.num_tokens(image.grid) == image.token_ids.count(self.token_id):
                raise RequestError(f"image {number} of the prompt has not the tokens of its size", param="messages")
            for array in image.arrays:
                if int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize != len(array.data):
                    raise RequestError(f"image {number} of the prompt is incomplete", param="messages")

    @torch.inference_mode()
    def encode(self, image: PromptImage) -> torch.Tensor:
        """What `features` gives; among the embeddings of placeholders stand those of the tokens between them."""
        found = self.features(image)
        if self.crosses:
            return found
        ids = torch.tensor(image.token_ids, device=self.device)
        places = (ids == self.token_id).nonzero().flatten()
        assert len(found) == len(places), "the tower gives another number of embeddings than the prompt has tokens"
        if len(places) == image.length:
            return found
        embedded: torch.Tensor = self._model.get_input_embeddings()(ids)
        return embedded.index_copy(0, places, found.to(embedded.dtype))

    def _scaled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels `[..., channels, height, width]` as the processor scales them, fp32."""
        mean, std = self._mean.view(-1, 1, 1), self._std.view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / std


def tensor_of(array: ImageArray, device: torch.device) -> torch.Tensor:
    """An array of an image on the device."""
    values = np.frombuffer(array.data, dtype=array.dtype).reshape(array.shape)
    return torch.from_numpy(values.copy()).to(device)


def _processing(directory: Path) -> dict[str, Any]:
    """How the model's image processor is set up, as far as the checkpoint says."""
    for name in PROCESSING_FILES:
        try:
            content = json.loads((directory / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return dict(content.get("image_processor") or content)
    return {}


def _scaling(processing: dict[str, Any], default: Scaling) -> Scaling:
    """Mean and deviation by channel."""
    if processing.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(processing.get("image_mean") or default[0]), tuple(processing.get("image_std") or default[1])
