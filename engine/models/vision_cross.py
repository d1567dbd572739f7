"""Mllama's tower (Llama 3.2 Vision): tiles whose states layers of cross attention look at.

An image stands in the prompt as one token, which keeps its own embedding. `grid` is (rows, columns) of tiles; the array
`pixel_values` is uint8 `[tiles, channels, side, side]`.
"""

from typing import ClassVar

import torch

from engine.models.image_encoder import HALF, ImageEncoder, tensor_of
from engine.scheduling.images import Placement, PromptImage


class MllamaEncoder(ImageEncoder):
    """See the module's docstring."""

    family = "mllama"
    scaling = HALF
    crosses: ClassVar[bool] = True

    def num_tokens(self, grid: tuple[int, ...]) -> int:
        """One, of an arrangement of tiles that the tower knows."""
        return 1 if self._arrangement(grid) else 0

    def example_shape(self, most_tokens: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """All tiles there may be, or one."""
        tiles = 1 if most_tokens is None else self.max_units
        return (1, tiles), (tiles, 3, self._side, self._side)

    def num_units(self, grid: tuple[int, ...]) -> int:
        """Tiles: each takes as much memory while tokens look at it."""
        return grid[0] * grid[1]

    @property
    def max_units(self) -> int:
        """Tiles of the largest image."""
        return int(self._config.vision_config.max_num_tiles)

    def place(self, num_tokens: int, images: tuple[PromptImage, ...]) -> Placement | None:
        """As in any text."""
        return None

    def features(self, image: PromptImage) -> torch.Tensor:
        """States `[tiles * patches, hidden]` of the tiles that are there."""
        (array,) = image.arrays
        tiles = self._scaled(tensor_of(array, self.device))
        # The tower always sees all tiles there may be, and what lies behind the image's own is nothing.
        pixels = tiles.new_zeros(1, 1, self.max_units, *tiles.shape[1:])
        pixels[0, 0, : len(tiles)] = tiles
        shown = torch.zeros(1, 1, self.max_units, dtype=torch.int64, device=self.device)
        shown[..., : len(tiles)] = 1
        arrangement = torch.tensor([[self._arrangement(image.grid)]], device=self.device)
        tower = self._model.model
        states = tower.vision_model(pixels, aspect_ratio_ids=arrangement, aspect_ratio_mask=shown).last_hidden_state
        found: torch.Tensor = tower.multi_modal_projector(states[0, 0, : len(tiles)])
        return found.flatten(0, 1)

    @property
    def states_of_unit(self) -> int:
        """Patches of a tile, and one state for all of it."""
        vision = self._config.vision_config
        return int((vision.image_size // vision.patch_size) ** 2 + 1)

    def _arrangement(self, grid: tuple[int, ...]) -> int:
        """The number of an arrangement of tiles, from 1 on; 0 for one that does not exist."""
        known = [list(arrangement) for arrangement in self._config.vision_config.supported_aspect_ratios]
        return known.index(list(grid)) + 1 if list(grid) in known else 0
