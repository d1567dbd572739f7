"""Embeddings of images that were encoded, so that the next turn about one, or its next chunk, need not do it again.

What is here may always be given up: the pixels stay with the sequences, and are encoded again where it must be.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch

from engine.device.host_batch import HostBatch
from engine.scheduling.images import PromptImage


class ImageCache:
    """The least recently used are given up first, as soon as all take more than `budget` bytes."""

    def __init__(self, encode: Callable[[PromptImage], torch.Tensor], budget: int) -> None:
        """`encode` gives the embeddings `[length, hidden]` of an image, with more behind them in some families."""
        self._encode = encode
        self._budget = budget
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.num_bytes = 0
        self.num_encoded = 0
        """Images that were not here."""

    def __contains__(self, image: PromptImage) -> bool:
        return image.digest in self._kept

    def make(self, image: PromptImage) -> torch.Tensor:
        """`[length, hidden]`, encoded now."""
        self.num_encoded += 1
        return self._encode(image)

    def keep(self, image: PromptImage, found: torch.Tensor) -> None:
        """Keep what `make` gave, as long as there is room."""
        if found.nbytes <= self._budget and image not in self:
            self._kept[image.digest] = found
            self.num_bytes += found.nbytes
            while self.num_bytes > self._budget:
                self.num_bytes -= self._kept.popitem(last=False)[1].nbytes

    def find(self, image: PromptImage) -> torch.Tensor | None:
        """`[length, hidden]`, if they are here."""
        found = self._kept.get(image.digest)
        if found is not None:
            self._kept.move_to_end(image.digest)
        return found

    def forget(self) -> None:
        """Keep nothing of what is here."""
        self._kept.clear()
        self.num_bytes = 0

    def embeddings(self, image: PromptImage) -> torch.Tensor:
        """`[length, hidden]`, encoded now if they are not here."""
        found = self.find(image)
        if found is None:
            found = self.make(image)
            self.keep(image, found)
        return found

    def put_into(self, embedded: torch.Tensor, host: HostBatch, held: Mapping[bytes, torch.Tensor]) -> torch.Tensor:
        """Write the embeddings of a step's image tokens over those of their placeholders, `[T, hidden]`.

        Those that are `held` for the step are not looked for here. What a family has beside them comes back,
        `[image tokens, more]`.
        """
        width = embedded.shape[1]
        more = []
        for rows in host.images:
            found = held.get(rows.image.digest)
            found = self.embeddings(rows.image) if found is None else found
            part = found[rows.offset : rows.offset + rows.length].to(embedded.dtype)
            embedded[rows.row : rows.row + rows.length] = part[:, :width]
            more.append(part[:, width:])
        return torch.cat(more)
