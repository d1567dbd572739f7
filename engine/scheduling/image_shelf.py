"""Room for the images that running sequences look at in every step, for models with layers of cross attention.

An image is kept while a running sequence has it, and as long after that as nobody needs its room:

    owned    of at least one running sequence
    cached   of none, given up least recently used first

`owned + cached` never exceeds the capacity. What is kept of an image is the runner's business, who asks for each image
by its digest whether it still has a place here.
"""

from collections import OrderedDict
from collections.abc import Callable

from engine.scheduling.images import PromptImage
from engine.scheduling.sequence import Sequence


class ImageShelf:
    """See the module's docstring."""

    def __init__(self, capacity: int, units_of: Callable[[tuple[int, ...]], int]) -> None:
        """Room for `capacity` units; `units_of` says how many an image takes, by its grid."""
        self.capacity = capacity
        self._units_of = units_of
        self._owners: dict[bytes, int] = {}
        self._units: dict[bytes, int] = {}
        self._evictable: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._units

    @property
    def num_owned(self) -> int:
        """Units of images that running sequences have."""
        return sum(self._units[digest] for digest in self._owners)

    @property
    def num_kept(self) -> int:
        """Units that are taken."""
        return sum(self._units.values())

    def units(self, images: tuple[PromptImage, ...]) -> int:
        """What the images of a prompt take together; one that comes twice is kept once."""
        return sum(self._units_of(grid) for grid in {image.digest: image.grid for image in images}.values())

    def take(self, sequence: Sequence) -> bool:
        """Keep all images of a sequence that begins to run; False, changing nothing, if there is no room."""
        wanted = {image.digest: image.grid for image in sequence.images}
        missing = {digest: self._units_of(grid) for digest, grid in wanted.items() if digest not in self._units}
        idle = sum(self._units[digest] for digest in self._evictable if digest not in wanted)
        excess = self.num_kept + sum(missing.values()) - self.capacity
        if excess > idle:
            return False
        for digest in wanted:
            self._evictable.pop(digest, None)
        while excess > 0:
            excess -= self._units.pop(self._evictable.popitem(last=False)[0])
        self._units |= missing
        for digest in wanted:
            self._owners[digest] = self._owners.get(digest, 0) + 1
        return True

    def give_back(self, sequence: Sequence) -> None:
        """A sequence that had taken its images runs no longer."""
        for digest in {image.digest for image in sequence.images}:
            self._owners[digest] -= 1
            if not self._owners[digest]:
                del self._owners[digest]
                self._evictable[digest] = None

    def clear(self) -> None:
        """Give up all images, which no running sequence may have."""
        assert not self._owners, "images that are looked at are not given up"
        self._units.clear()
        self._evictable.clear()

    def check(self, running: list[Sequence]) -> None:
        """Raise AssertionError unless the books agree with the running sequences."""
        owners: dict[bytes, int] = {}
        for sequence in running:
            for digest in {image.digest for image in sequence.images}:
                owners[digest] = owners.get(digest, 0) + 1
        assert owners == self._owners, "images are owned by others than run"
        assert self._units.keys() == owners.keys() | self._evictable.keys(), "an image is kept for nobody"
        assert not owners.keys() & self._evictable.keys(), "an image that is owned can be given up"
        assert self.num_kept <= self.capacity, "more images are kept than there is room for"
