"""All that happens to the images of a request, from their URLs to what the engine takes."""

import asyncio
import time
from dataclasses import dataclass, field

from engine.messages import EngineInfo
from server.config.image_policy import RemotePolicy
from server.images.fetch import Fetcher, FetchError
from server.images.kept import KeptImages, key_of
from server.images.locations import DataImage, LocationError, parse_location
from server.images.messages import Detail, PreparedImage, PrepareImage
from server.images.pool import ImageError, ImagePool
from server.protocol.errors import ApiError, bad_request, unsupported
from server.protocol.parts import ImageRef
from server.telemetry.counters import Histogram

HASHED_HERE_BYTES = 256 * 1024
"""Larger images are hashed in a thread, so that nobody waits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestLimits:
    """What the images of one request may be."""

    max_images: int = 16
    max_bytes: int = 20 * 1000 * 1000
    """Of one image as it comes."""
    max_pixels: int = 40_000_000
    max_side: int = 16_384


@dataclass(slots=True)
class ImageService:
    """The images of one server; for one event loop."""

    limits: RequestLimits = field(default_factory=RequestLimits)
    pool: ImagePool = field(default_factory=ImagePool)
    fetchers: dict[RemotePolicy, Fetcher] = field(default_factory=dict)
    """By policy; made when first needed."""
    kept: KeptImages = field(default_factory=KeptImages)
    fetching: Histogram = field(default_factory=Histogram)
    """Seconds until the images of a request were here, of requests that have some and are not refused."""
    decoding: Histogram = field(default_factory=Histogram)
    """And from then on until all were ready for the engine."""

    async def prepare(
        self, refs: list[ImageRef], info: EngineInfo, policy: RemotePolicy, salt: bytes
    ) -> list[PreparedImage]:
        """The images as the engine takes them, in order; equal ones are looked at once.

        Raises `ApiError` 400 that names the part, with the first that is wrong.
        """
        if not refs:
            return []
        if info.images is None:
            raise unsupported(refs[0].param, f"The model {info.name} takes no images")
        if len(refs) > self.limits.max_images:
            raise bad_request(
                f"messages must hold at most {self.limits.max_images} images, got {len(refs)}",
                param=refs[self.limits.max_images].param,
            )
        different = list(dict.fromkeys((ref.url, ref.detail) for ref in refs))
        first = {(ref.url, ref.detail): ref for ref in reversed(refs)}
        alone = len(refs) == 1
        began = time.monotonic()
        tasks = [asyncio.ensure_future(self._prepare(first[key], info, policy, salt, alone=alone)) for key in different]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        here = max(here for _, here in found)
        self.fetching.observe(here - began)
        self.decoding.observe(time.monotonic() - here)
        by_key = {key: image for key, (image, _) in zip(different, found, strict=True)}
        return [by_key[ref.url, ref.detail] for ref in refs]

    async def _prepare(
        self, ref: ImageRef, info: EngineInfo, policy: RemotePolicy, salt: bytes, *, alone: bool
    ) -> tuple[PreparedImage, float]:
        """The image, and when its bytes were here."""
        assert info.images is not None
        detail: Detail = ref.detail or "auto"
        question = PrepareImage(
            info.model_dir,
            info.images.family,
            info.images.token_id,
            detail,
            salt,
            self.limits.max_pixels,
            self.limits.max_side,
            alone,
        )
        try:
            location = parse_location(ref.url, max_bytes=self.limits.max_bytes)
            content = (
                location.content if isinstance(location, DataImage) else await self._fetcher(policy).fetch(location)
            )
            here = time.monotonic()
            return await self._looked_at(question, content), here
        except LocationError as error:
            raise _refused(ref, str(error), "invalid_image_url") from None
        except FetchError as error:
            raise _refused(ref, str(error), "image_not_fetched") from None
        except ImageError as error:
            raise _refused(ref, f"the image cannot be used: {error}", "invalid_image") from None

    async def _looked_at(self, question: PrepareImage, content: bytes) -> PreparedImage:
        """Whole conversations come again with each turn; what was decoded for one is not decoded for the next."""
        is_small = len(content) <= HASHED_HERE_BYTES
        key = key_of(question, content) if is_small else await asyncio.to_thread(key_of, question, content)
        image = self.kept.find(key)
        if image is None:
            image = await self.pool.prepare(question, content)
            self.kept.keep(key, image)
        return image

    def _fetcher(self, policy: RemotePolicy) -> Fetcher:
        if policy not in self.fetchers:
            self.fetchers[policy] = Fetcher(policy, max_bytes=self.limits.max_bytes)
        return self.fetchers[policy]

    async def close(self) -> None:
        """End all processes."""
        await self.pool.close()


def _refused(ref: ImageRef, message: str, code: str) -> ApiError:
    return bad_request(f"{ref.param}: {message}", param=ref.param, code=code)
