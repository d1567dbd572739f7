"""From the bytes of an image to its pixels: RGB, upright, on white. Runs in a worker, never in the API process.

The bytes are anybody's. Only five formats are opened, by their content and not by what they are called; what an image
would take is read from its header before a pixel is decoded; and of animations only the first frame is looked at.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Pillow's other readers have had bugs enough, and no client sends what they read."""
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_WHITE = (255, 255, 255, 255)


class DecodeError(Exception):
    """What is wrong with an image, in words for the one who sent it."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one image may be."""

    max_pixels: int = 40_000_000
    max_side: int = 16_384


def decode(content: bytes, limits: ImageLimits) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of an image, uint8 `[height, width, 3]`. Raises `DecodeError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata and sizes; sizes are checked here
            Image.MAX_IMAGE_PIXELS = None
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(image, limits)
                image.load()
                upright = ImageOps.exif_transpose(image)
            return np.asarray(_on_white(upright))
    except UnidentifiedImageError:
        raise DecodeError("it is no image in a format that is read here: JPEG, PNG, WebP, GIF or BMP") from None
    except MemoryError:
        raise DecodeError("it takes more memory than an image may") from None
    except (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, EOFError, struct.error):
        # Pillow's readers let through what their parsing trips over.
        raise DecodeError("it is truncated or damaged") from None


def _check_size(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if not width or not height:
        raise DecodeError("it has no pixels")
    if max(width, height) > limits.max_side:
        raise DecodeError(f"its sides must be at most {limits.max_side} pixels, got {width} x {height}")
    if width * height > limits.max_pixels:
        raise DecodeError(f"it must have at most {limits.max_pixels} pixels, got {width} x {height}")


def _on_white(image: Image.Image) -> Image.Image:
    """In RGB; what is transparent is white."""
    if image.mode in _DEEP:
        return _from_deep(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    return image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, whatever Pillow calls it, which its own conversion would cut off at 255."""
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8)).convert("RGB")
