"""What is decoded for one turn is there for the next, for the same tenant, and takes no more memory than it may."""

import asyncio
import base64
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from engine.messages import ImageArray, ImageInfo
from server.config.image_policy import NOWHERE
from server.images.kept import KeptImages, key_of, size_of
from server.images.messages import PreparedImage, PrepareImage
from server.images.pool import ImageError
from server.images.service import HASHED_HERE_BYTES, ImageService
from server.protocol.errors import ApiError
from server.protocol.parts import ImageRef

INFO: Any = SimpleNamespace(name="m", model_dir="/m", images=ImageInfo("qwen2_vl", 5, 5))


@dataclass
class Pool:
    """Prepares whatever comes, and counts; `bad` cannot be decoded."""

    asked: list[tuple[PrepareImage, bytes]] = field(default_factory=list)

    async def prepare(self, question: PrepareImage, content: bytes) -> PreparedImage:
        self.asked.append((question, content))
        await asyncio.sleep(0)
        if content == b"bad":
            raise ImageError("it is bad")
        return prepared(content)


def prepared(content: bytes, size: int = 100) -> PreparedImage:
    return PreparedImage(content[:32], [1], [5], [ImageArray("pixels", [size], "uint8", bytes(size))])


def ref(content: bytes, number: int = 0, detail: Any = None) -> ImageRef:
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    return ImageRef(url=url, detail=detail, param=f"messages[0].content[{number}].image_url")


def looks(*requests: tuple[list[ImageRef], bytes]) -> tuple[ImageService, Pool]:
    """Requests one after another, each with its images and its tenant's salt."""
    pool = Pool()
    service = ImageService(pool=pool)  # type: ignore[arg-type]

    async def run() -> None:
        for refs, salt in requests:
            found = await service.prepare(refs, INFO, NOWHERE, salt)
            assert len(found) == len(refs)

    asyncio.run(run())
    return service, pool


@pytest.mark.parametrize("size", [10, HASHED_HERE_BYTES + 1])
def test_the_next_turn_decodes_nothing_again(size: int) -> None:
    first, second = bytes([1]) * size, bytes([2]) * size
    turns = [[ref(first), ref(first, 1)], [ref(first), ref(second, 1)], [ref(first), ref(second, 1), ref(first, 2)]]
    service, pool = looks(*((turn, b"salt") for turn in turns))
    assert [content for _, content in pool.asked] == [first, second]
    assert service.decoding.total >= 0 and sum(service.decoding.counts) == sum(service.fetching.counts) == 3


def test_another_tenant_detail_or_place_alone_is_looked_at_anew() -> None:
    one = b"an image"
    _, pool = looks(
        ([ref(one)], b"a"),
        ([ref(one)], b"b"),
        ([ref(one, detail="low")], b"a"),
        ([ref(one), ref(b"another", 1)], b"a"),
        ([ref(one)], b"a"),
    )
    assert [(q.salt, q.detail, q.is_alone) for q, content in pool.asked if content == one] == [
        (b"a", "auto", True), (b"b", "auto", True), (b"a", "low", True), (b"a", "auto", False),
    ]  # fmt: skip


def test_what_cannot_be_decoded_is_tried_again_and_counted_nowhere() -> None:
    for _ in range(2):
        with pytest.raises(ApiError, match="it is bad"):
            looks(([ref(b"bad")], b""))
    service = ImageService(pool=Pool())  # type: ignore[arg-type]
    assert not sum(service.decoding.counts)


def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    size = size_of(prepared(b""))
    kept = KeptImages(3 * size)
    question = PrepareImage("/m", "qwen2_vl", 5, "auto", b"", 1, 1)
    keys = [key_of(question, bytes([number])) for number in range(5)]
    for key in keys[:3]:
        kept.keep(key, prepared(key[0]))
    assert kept.find(keys[0]) is not None
    kept.keep(keys[3], prepared(keys[3][0]))
    assert [kept.find(key) is not None for key in keys] == [True, False, True, True, False]
    kept.keep(keys[4], prepared(b"", size=1000))  # larger than all there is room for
    assert kept.find(keys[4]) is None and kept.num_bytes == 3 * size
    kept.keep(keys[0], prepared(keys[0][0]))
    assert kept.num_bytes == 3 * size
