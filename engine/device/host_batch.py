"""One step on the host, packed from what the scheduler chose: what a device, or another rank, is told of it."""

from dataclasses import dataclass, field

import numpy as np

from engine.scheduling.images import ImageRows, Look


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of a step that attend to each other in both directions."""

    row: int
    """Of which sequence of the step."""
    token: int
    """Of the step's tokens, the first of them."""
    start: int
    """Its place in the sequence."""
    length: int


@dataclass(frozen=True, slots=True)
class TableChanges:
    """What is new in block tables, int64 `[n]` each: places in all of them in one row, and the blocks to come there."""

    places: np.ndarray
    blocks: np.ndarray


@dataclass(frozen=True, slots=True)
class HostBatch:
    """The same step on the host, before it is copied to the device. Arrays are int64."""

    token_ids: np.ndarray
    """[T]; 0 for a token that the host does not know yet."""
    unread: list[int]
    """Where in T those stand."""
    unread_slots: list[int]
    """Whose newest tokens they are."""
    positions: np.ndarray
    """[T], or [3, T] where images have height and width."""
    slot_mapping: np.ndarray
    slots: np.ndarray
    """[S]: the sequences' slots."""
    logits_index: np.ndarray
    query_lens: list[int]
    context_lens: list[int]
    num_decodes: int
    num_samples: int
    """Of `logits_index`, those at its beginning that sample; the others are scored."""
    changes: TableChanges
    """Of block tables, which other ranks have to learn."""
    images: list[ImageRows] = field(default_factory=list)
    """Tokens that stand for images; on rank 0 alone."""
    sees_images: bool = False
    """Whether there are such tokens."""
    looks: list[Look] = field(default_factory=list)
    """Tokens that look at images in layers of cross attention."""
    spans: list[Span] = field(default_factory=list)

    @property
    def is_text(self) -> bool:
        """Whether images play no part in this step but through keys and values that are in the cache."""
        return not self.sees_images and not self.looks and self.positions.ndim == 1

    @property
    def only_decodes(self) -> bool:
        """Whether every sequence has one token of text, whose logits are needed, in that order, and no others."""
        if not self.is_text:
            return False
        in_order = np.arange(len(self.query_lens))
        return self.num_decodes == len(in_order) and np.array_equal(self.logits_index, in_order)
