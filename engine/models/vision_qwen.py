"""Qwen's towers: patches of any number, and places in three directions."""

import math
from typing import Any

import numpy as np
import torch

from engine.models.image_encoder import HALF, ImageEncoder, tensor_of
from engine.scheduling.images import ImageRows, Placement, PromptImage
from engine.sizing.towers import QWEN_PIXELS


class QwenEncoder(ImageEncoder):
    """Qwen2-VL, Qwen2.5-VL: patches over a grid, merged two by two; rotary places in three directions.

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

    def example_shape(self, most_tokens: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """About a square, of as many patches as the processor's budget of pixels has."""
        vision = self._config.vision_config
        merge, patch = vision.spatial_merge_size, vision.patch_size
        tokens = 4
        if most_tokens is not None:
            pixels = (self._processing.get("size") or {}).get("longest_edge") or self._processing.get("max_pixels")
            tokens = max(1, min((pixels or QWEN_PIXELS) // (patch * merge) ** 2, most_tokens))
        rows = math.isqrt(tokens)
        grid = (1, rows * merge, tokens // rows * merge)
        return grid, (grid[1] * grid[2], vision.in_channels, 1, patch, patch)

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
        pixels = self._scaled(tensor_of(array, self.device).squeeze(2)).unsqueeze(2)
        patches = pixels.expand(-1, -1, frames, -1, -1).flatten(1)
        grid = torch.tensor([image.grid], device=self.device)
        return self._found(self._model.get_image_features(patches, grid))

    def _found(self, output: Any) -> torch.Tensor:
        return torch.cat(list(output.pooler_output))


class Qwen3Encoder(QwenEncoder):
    """Qwen3-VL: what some layers of the tower see is added behind the first layers of the decoder as well."""

    scaling = HALF

    def _found(self, output: Any) -> torch.Tensor:
        """Embeddings, and behind them those for each of the layers."""
        # Of each image apart, or of all together: that depends on transformers' version.
        deep = [
            features if isinstance(features, torch.Tensor) else torch.cat(list(features))
            for features in output.deepstack_features
        ]
        return torch.cat([super()._found(output), *deep], dim=1)

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """The embedding, and those for the layers."""
        return super().bytes_per_token(dtype) * (1 + len(self._config.vision_config.deepstack_visual_indexes))

    def deep_inputs(self, deep: torch.Tensor, images: list[ImageRows], num_tokens: int) -> dict[str, Any]:
        """Which tokens of the step are images', and what is added to them behind each layer."""
        shown = torch.zeros(1, num_tokens, dtype=torch.bool, device=deep.device)
        for rows in images:
            shown[:, rows.row : rows.row + rows.length] = True
        width = self._config.text_config.hidden_size
        return {"visual_pos_masks": shown, "deepstack_visual_embeds": list(torch.split(deep, width, dim=1))}
