"""Qwen's towers: patches of any number, and places in three directions."""

import numpy as np
import torch

from engine.models.image_encoder import ImageEncoder, tensor_of
from engine.scheduling.images import Placement, PromptImage


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
        pixels = self._scaled(tensor_of(array, self.device).squeeze(2)).unsqueeze(2)
        patches = pixels.expand(-1, -1, frames, -1, -1).flatten(1)
        grid = torch.tensor([image.grid], device=self.device)
        return torch.cat(list(self._model.get_image_features(patches, grid).pooler_output))
