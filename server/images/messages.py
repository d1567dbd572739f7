"""What crosses between the API process and the processes that look at images: fixed types, nothing executed."""

from typing import Literal

import msgspec

from engine.messages import ImageArray

Detail = Literal["auto", "low", "high"]


class PrepareImage(msgspec.Struct, tag="prepare", frozen=True):
    """Decode the image in the next frame and cut it as a model wants it."""

    model_dir: str
    family: str
    """`EngineInfo.images`' family."""
    token_id: int
    """And its placeholder."""
    detail: Detail
    salt: bytes
    """Of the tenant: equal images of different tenants have different digests."""
    max_pixels: int
    max_side: int
    is_alone: bool = True
    """No other image is in the conversation."""


class PreparedImage(msgspec.Struct, tag="prepared", frozen=True):
    """An image as the engine takes it."""

    digest: bytes
    """Of salt, settings and pixels."""
    grid: list[int]
    token_ids: list[int]
    """What stands in the prompt for it, placeholders and what is between and around them."""
    arrays: list[ImageArray]


class ImageRefused(msgspec.Struct, tag="refused", frozen=True):
    """What is wrong with the image, in words for the one who sent it: `it is ...`."""

    message: str


class ImageFailed(msgspec.Struct, tag="failed", frozen=True):
    """The model's image processor does not work, which is no fault of the image; in words for the log."""

    message: str


ImageReply = PreparedImage | ImageRefused | ImageFailed

decode_question = msgspec.msgpack.Decoder(PrepareImage).decode
decode_reply: "msgspec.msgpack.Decoder[ImageReply]" = msgspec.msgpack.Decoder(ImageReply)
