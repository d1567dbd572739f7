"""Keys and values of images in layers of cross attention, for those that have a place on the shelf."""

from collections.abc import Callable

import torch

from engine.models.cross_attention import CrossAttention, LookAt
from engine.scheduling.image_shelf import ImageShelf
from engine.scheduling.images import Look, PromptImage


class CrossImages:
    """What is kept follows the shelf: which images there is room for is decided where sequences are scheduled."""

    def __init__(
        self, encode: Callable[[PromptImage], torch.Tensor], layers: list[CrossAttention], shelf: ImageShelf
    ) -> None:
        """`encode` gives the states `[states, hidden]` of an image."""
        self._encode = encode
        self._layers = layers
        self._shelf = shelf
        self._kept: dict[bytes, torch.Tensor] = {}
        self.num_encoded = 0

    @property
    def num_bytes(self) -> int:
        """What the images that are kept take."""
        return sum(states.nbytes for states in self._kept.values())

    def __contains__(self, image: PromptImage) -> bool:
        return image.digest in self._kept

    @torch.inference_mode()
    def make(self, image: PromptImage) -> torch.Tensor:
        """Keys and values `[layers, 2, KV, states, D]`, computed now."""
        self.num_encoded += 1
        found = self._encode(image)
        return torch.stack([layer.project(found) for layer in self._layers])

    def keep(self, image: PromptImage, found: torch.Tensor) -> None:
        """Keep what `make` gave, in the place that the image has on the shelf."""
        for digest in [digest for digest in self._kept if digest not in self._shelf]:
            del self._kept[digest]
        self._kept[image.digest] = found

    def find(self, image: PromptImage) -> torch.Tensor | None:
        """Keys and values `[layers, 2, KV, states, D]`, if they are here."""
        return self._kept.get(image.digest)

    def forget(self) -> None:
        """Keep nothing of what is here, which nobody may be looking at."""
        self._shelf.clear()
        self._kept.clear()

    def states(self, image: PromptImage) -> torch.Tensor:
        """Keys and values `[layers, 2, KV, states, D]`, computed now if they are not here."""
        if image not in self:
            self.keep(image, self.make(image))
        return self._kept[image.digest]

    def look(self, look: Look) -> LookAt:
        """What tokens of a step look at."""
        return LookAt(slice(look.row, look.row + look.length), [self.states(image) for image in look.images])
