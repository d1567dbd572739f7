"""Images of a prompt: pixels on their way from the API process, and the tokens that stand for them.

An image stands in the prompt as a span of equal placeholder tokens, in some models with marks between them; what they
mean is bound by place, never by id, so that no text can claim an image. The pixels of a request come right before it,
in messages of their own. Its sequences hold them until they end, because after a preemption they are encoded again
unless the embeddings are still there.
"""

from dataclasses import dataclass

import numpy as np

from engine.errors import RequestError
from engine.messages import AddImage, AddRequest, ImageArray

MAX_IMAGES = 64
"""Of one request; the API process has limits of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptImage:
    """An image in a prompt: `length` tokens from `start` on stand for it."""

    start: int
    length: int
    digest: bytes
    """Of the pixels, of what is done to them, and of the tenant: equal digests are equal embeddings."""
    grid: tuple[int, ...]
    """The family's own measure of its size."""
    arrays: tuple[ImageArray, ...]
    token_ids: tuple[int, ...] = ()
    """The tokens in the prompt: placeholders, and marks that some models have between them."""
    is_whole: bool = False
    """Its tokens attend to each other in both directions, so they are computed in one step."""

    @property
    def num_bytes(self) -> int:
        """Of its pixels."""
        return sum(len(array.data) for array in self.arrays)

    @property
    def end(self) -> int:
        """The place behind its last token."""
        return self.start + self.length


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where the tokens of a prompt with images stand for the model's rotary embedding."""

    positions: np.ndarray
    """int64 [3, P]: time, height and width of each prompt token."""
    delta: int
    """What is added to the place of a generated token."""


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Tokens of a step that stand for a part of an image."""

    row: int
    """Of the step's tokens, the first of them."""
    image: PromptImage
    offset: int
    """Of the image's tokens, the first of them."""
    length: int


@dataclass(frozen=True, slots=True)
class Look:
    """Tokens of a step, `length` from `row` on, that look at the same images in layers of cross attention."""

    row: int
    length: int
    images: tuple[PromptImage, ...]


class ImageInbox:
    """Images whose request has not come yet."""

    def __init__(self) -> None:
        self._arrived: dict[bytes, AddImage] = {}

    def add(self, image: AddImage) -> None:
        """Keep an image for the request that comes next."""
        if len(self._arrived) < MAX_IMAGES:
            self._arrived[image.digest] = image

    def claim(self, request: AddRequest, *, whole: bool = False) -> tuple[PromptImage, ...]:
        """The images of a request, which may have to be `whole`; what else has come is forgotten.

        Raises `RequestError`.
        """
        arrived, self._arrived = self._arrived, {}
        images: list[PromptImage] = []
        end = 0
        for span in request.images:
            if span.start < end or span.length < 1 or span.start + span.length > len(request.prompt_token_ids):
                raise RequestError("the prompt's images overlap, or lie outside of it", param="messages")
            if (image := arrived.get(span.digest)) is None:
                raise RequestError("an image of the prompt has not arrived", param="messages")
            end = span.start + span.length
            token_ids = tuple(request.prompt_token_ids[span.start : end])
            images.append(
                PromptImage(
                    span.start, span.length, span.digest, tuple(image.grid), tuple(image.arrays), token_ids, whole
                )
            )
        if images and request.params.prompt_logprobs is not None:
            raise RequestError("log-probabilities of a prompt with images are not computed", param="prompt_logprobs")
        return tuple(images)


def marks(images: tuple[PromptImage, ...], first: int, end: int) -> tuple[tuple[bytes, int], ...]:
    """What the tokens from `first` to before `end` do not tell by themselves: which images, from which token on."""
    return tuple((image.digest, first - image.start) for image in images if image.start < end and image.end > first)


def cut_in(images: tuple[PromptImage, ...], end: int) -> PromptImage | None:
    """The image that a step ending before the token at `end` would cut, of those that must be whole."""
    return next((image for image in images if image.is_whole and image.start < end < image.end), None)


def rows_of(images: tuple[PromptImage, ...], first: int, end: int, row: int) -> list[ImageRows]:
    """The parts of images among the tokens from `first` to before `end`, which are those of a step from `row` on."""
    found = []
    for image in images:
        begin, stop = max(first, image.start), min(end, image.end)
        if begin < stop:
            found.append(ImageRows(row + begin - first, image, begin - image.start, stop - begin))
    return found


def looks_of(images: tuple[PromptImage, ...], first: int, end: int, row: int) -> list[Look]:
    """What the tokens from `first` to before `end` look at, which are those of a step from `row` on.

    A token sees the last group of images at or before it; a group is of images side by side, and its own tokens see
    those up to themselves. Tokens before the first image see nothing, and are not here.
    """
    found = []
    group = 0
    for number, image in enumerate(images):
        if number and image.start != images[number - 1].end:
            group = number
        begin = max(first, image.start)
        stop = min(end, images[number + 1].start if number + 1 < len(images) else end)
        if begin < stop:
            found.append(Look(row + begin - first, stop - begin, images[group : number + 1]))
    return found
