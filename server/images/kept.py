"""Images as they were prepared for a model, for the turns to come: each of them sends the whole conversation again."""

from collections import OrderedDict
from hashlib import sha256

from server.images.messages import PreparedImage, PrepareImage

KEPT_BYTES = 64 << 20
"""About twenty images of a megapixel."""

Key = tuple[bytes, PrepareImage]


def key_of(question: PrepareImage, content: bytes) -> Key:
    """What decides what an image becomes: its bytes, the model, and how it is to be looked at, for which tenant."""
    return sha256(content).digest(), question


class KeptImages:
    """The least recently used are given up first, as soon as all take more than `max_bytes`."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Key, PreparedImage] = OrderedDict()
        self.num_bytes = 0

    def find(self, key: Key) -> PreparedImage | None:
        """The image, if it is here."""
        image = self._kept.get(key)
        if image is not None:
            self._kept.move_to_end(key)
        return image

    def keep(self, key: Key, image: PreparedImage) -> None:
        """Keep it as long as there is room."""
        size = size_of(image)
        if size <= self._max_bytes and key not in self._kept:
            self._kept[key] = image
            self.num_bytes += size
            while self.num_bytes > self._max_bytes:
                self.num_bytes -= size_of(self._kept.popitem(last=False)[1])


def size_of(image: PreparedImage) -> int:
    """Bytes that it takes, about."""
    return sum(len(array.data) for array in image.arrays) + 8 * len(image.token_ids)
