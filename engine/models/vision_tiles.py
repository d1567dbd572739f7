"""Towers that see an image as one square, or as several of one size, each of which has as many embeddings."""

from typing import ClassVar

import torch

from engine.messages import ImageInfo
from engine.models.image_encoder import HALF, ImageEncoder, tensor_of
from engine.scheduling.images import Placement, PromptImage


class TileEncoder(ImageEncoder):
    """`grid` begins with the number of tiles; the array `pixel_values` is uint8 `[tiles, channels, side, side]`."""

    scaling = HALF

    def place(self, num_tokens: int, images: tuple[PromptImage, ...]) -> Placement | None:
        """As in any text."""
        return None

    def tiles(self, image: PromptImage) -> torch.Tensor:
        """Scaled as the processor would, fp32."""
        (array,) = image.arrays
        return self._scaled(tensor_of(array, self.device))


class Gemma3Encoder(TileEncoder):
    """Gemma 3: one square of a fixed number of tokens, which attend to each other in both directions.

    Cutting an image into several (pan and scan) is off, as it is where the model's processor does not say otherwise.
    """

    family = "gemma3"
    both_ways: ClassVar[bool] = True

    @property
    def info(self) -> ImageInfo:
        """The template shows what begins an image."""
        return ImageInfo(self.family, self.token_id, int(self._config.boi_token_index), "\n\n")

    def num_tokens(self, grid: tuple[int, ...]) -> int:
        """As many for each image."""
        return int(self._config.mm_tokens_per_image) if grid == (1,) else 0

    def features(self, image: PromptImage) -> torch.Tensor:
        """The tower's output, pooled."""
        found: torch.Tensor = self._model.get_image_features(self.tiles(image)).pooler_output
        return found.flatten(0, 1)
