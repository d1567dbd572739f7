"""Towers that see an image as one square, or as several of one size, each of which has as many embeddings."""

from typing import ClassVar

import torch

from engine.anyres import anyres_tokens
from engine.messages import ImageInfo
from engine.models.image_encoder import CLIP, HALF, ImageEncoder, tensor_of
from engine.scheduling.images import Placement, PromptImage


class TileEncoder(ImageEncoder):
    """`grid` begins with the number of tiles; the array `pixel_values` is uint8 `[tiles, channels, side, side]`."""

    scaling = HALF

    def place(self, num_tokens: int, images: tuple[PromptImage, ...]) -> Placement | None:
        """As in any text."""
        return None

    def example_shape(self, most_tokens: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """One square."""
        return (1,), self._shape(1)

    def _shape(self, tiles: int) -> tuple[int, ...]:
        return tiles, 3, self._side, self._side

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


class Idefics3Encoder(TileEncoder):
    """Idefics3, SmolVLM: rows and columns of squares, then all of the image as one; `grid` is (rows, columns).

    A small image is one square alone, and (0, 0).
    """

    family = "idefics3"

    def num_tokens(self, grid: tuple[int, ...]) -> int:
        """As many for each square."""
        if len(grid) != 2 or min(grid) < 0 or (0 in grid and any(grid)):
            return 0
        vision = self._config.vision_config
        square = (vision.image_size // vision.patch_size // self._config.scale_factor) ** 2
        return int((grid[0] * grid[1] + 1) * square)

    def example_shape(self, most_tokens: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """As many squares as a square image is cut into, or one."""
        size, square = (self._processing.get(name) or {} for name in ("size", "max_image_size"))
        sides = -(-size.get("longest_edge", 4 * self._side) // square.get("longest_edge", self._side))
        sides = 0 if most_tokens is None or sides < 2 else sides
        return (sides, sides), self._shape(sides**2 + 1)

    def features(self, image: PromptImage) -> torch.Tensor:
        """The tower's output behind the connector."""
        found = self._model.get_image_features(self.tiles(image)[None]).pooler_output
        return torch.cat(list(found)).flatten(0, -2)


class SmolEncoder(Idefics3Encoder):
    """SmolVLM: only what cuts the image differs."""

    family = "smolvlm"


class InternEncoder(TileEncoder):
    """InternVL: up to a dozen tiles, then all of the image as one."""

    family = "internvl"
    scaling = CLIP

    def num_tokens(self, grid: tuple[int, ...]) -> int:
        """As many for each tile."""
        return int(self._config.image_seq_length) * grid[0] if len(grid) == 1 and grid[0] > 0 else 0

    def example_shape(self, most_tokens: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """As many tiles as there may be, and the whole, or one."""
        tiles = 1 if most_tokens is None else int(self._processing.get("max_patches") or 12) + 1
        return (tiles,), self._shape(tiles)

    def features(self, image: PromptImage) -> torch.Tensor:
        """The tower's output, four patches to a token."""
        found: torch.Tensor = self._model.get_image_features(self.tiles(image)).pooler_output
        return found.flatten(0, 1)


class LlavaEncoder(TileEncoder):
    """LLaVA: one square, seen by CLIP or SigLIP."""

    family = "llava"
    scaling = CLIP

    def num_tokens(self, grid: tuple[int, ...]) -> int:
        """A token for each patch; CLIP has one for the whole, which may be left out."""
        if grid != (1,):
            return 0
        vision = self._config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2 + ("clip" in vision.model_type)
        return int(patches) - int(self._config.vision_feature_select_strategy == "default")

    def features(self, image: PromptImage) -> torch.Tensor:
        """The tower's output behind the projector."""
        return torch.cat(list(self._model.get_image_features(self.tiles(image)).pooler_output))


class OnevisionEncoder(TileEncoder):
    """LLaVA-OneVision: all of an image as one tile, then as many as its shape wants; `grid` is (height, width, tiles).

    Where there are several images in a conversation each is one tile.
    """

    family = "llava_onevision"

    def num_tokens(self, grid: tuple[int, ...]) -> int:
        """As `anyres_tokens`, or one tile and what ends it."""
        if len(grid) != 3 or min(grid) < 1:
            return 0
        side = self._side // int(self._config.vision_config.patch_size)
        if grid[2] == 1:
            return side**2 + 1
        return anyres_tokens(
            grid[0],
            grid[1],
            tile=self._side,
            side=side,
            canvases=self._config.image_grid_pinpoints,
            max_tiles=int(self._config.vision_aspect_ratio.removeprefix("anyres_max_")),
        )

    def example_shape(self, most_tokens: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The largest canvas, filled, or one tile."""
        if most_tokens is None:
            return (self._side, self._side, 1), self._shape(1)
        height, width = max(self._config.image_grid_pinpoints, key=lambda canvas: canvas[0] * canvas[1])
        tiles = height // self._side * (width // self._side) + 1
        return (height, width, tiles), self._shape(tiles)

    def features(self, image: PromptImage) -> torch.Tensor:
        """The tower's output, cut to the image's shape."""
        height, width, tiles = image.grid
        size = torch.tensor([[height, width]], device=self.device)
        found = self._model.get_image_features(
            self.tiles(image), image_sizes=size, batch_num_images=torch.tensor([1 if tiles > 1 else 2])
        ).pooler_output
        return torch.cat(list(found))


class PixtralEncoder(TileEncoder):
    """Pixtral and Mistral Small 3: an image in its own shape, row by row; `grid` is (rows, columns) of tokens."""

    family = "pixtral"
    scaling = CLIP

    def num_tokens(self, grid: tuple[int, ...]) -> int:
        """A token for each patch, or group of them; what ends a row is none."""
        return grid[0] * grid[1] if len(grid) == 2 and min(grid) > 0 else 0

    def example_shape(self, most_tokens: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """A square of the longest side there may be."""
        patch = int(self._config.vision_config.patch_size) * int(getattr(self._config, "spatial_merge_size", 1))
        size = self._processing.get("size") or {}
        longest = int(size.get("longest_edge") or size.get("height") or 1024)
        side = 2 if most_tokens is None else -(-longest // patch)
        return (side, side), (1, 3, side * patch, side * patch)

    def features(self, image: PromptImage) -> torch.Tensor:
        """The tower's output behind the projector."""
        # transformers takes the only embedding of an only image of one token for all there are.
        times = 2 if image.length == 1 else 1
        pixels = self.tiles(image).repeat(times, 1, 1, 1)
        size = torch.tensor([list(pixels.shape[-2:])] * times, device=self.device)
        found: torch.Tensor = self._model.get_image_features(pixels, image_sizes=size).pooler_output[0]
        return found
