"""From pixels to what a model's tower takes, by transformers' own image processors. Runs in a worker.

Always the processors on Pillow: others compute other pixels, and which one is the default depends on what is installed.
Scaling and normalising are left to the engine, so that integers travel.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.messages import ImageArray
from server.images.decode import DecodeError
from server.images.messages import PreparedImage, PrepareImage

LOW_DETAIL_PIXELS = 512 * 512
"""What `detail: low` leaves of an image at most."""
MAX_ASPECT = 200

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class QwenProcessor:
    """Qwen2-VL and Qwen2.5-VL: sides become multiples of two patches, the whole stays within a budget of pixels."""

    def __init__(self, directory: Path) -> None:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        if (directory / "preprocessor_config.json").is_file():
            self._processor = Qwen2VLImageProcessorPil.from_pretrained(directory, local_files_only=True)
        else:
            self._processor = Qwen2VLImageProcessorPil()

    def prepare(self, pixels: Pixels, *, low: bool) -> tuple[list[int], int, list[ImageArray]]:
        """Grid in patches, tokens, and the patches uint8 `[patches, channels, 1, size, size]`."""
        height, width = pixels.shape[:2]
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise DecodeError(f"its longer side must be at most {MAX_ASPECT} times the shorter, got {width} x {height}")
        processor = self._processor
        smallest, largest = processor.size["shortest_edge"], processor.size["longest_edge"]
        largest = max(smallest, min(largest, LOW_DETAIL_PIXELS)) if low else largest
        found = processor(
            Image.fromarray(pixels),
            do_rescale=False,
            do_normalize=False,
            size={"shortest_edge": smallest, "longest_edge": largest},
            return_tensors="np",
        )
        grid = [int(side) for side in found["image_grid_thw"][0]]
        size, frames = processor.patch_size, processor.temporal_patch_size
        patches = np.asarray(found["pixel_values"]).reshape(len(found["pixel_values"]), -1, frames, size, size)
        # Frames are equal, and the values are whole: resampling was done in integers.
        one = np.ascontiguousarray(patches[:, :, :1]).astype(np.uint8)
        tokens = grid[0] * grid[1] * grid[2] // processor.merge_size**2
        return grid, tokens, [ImageArray("pixel_values", list(one.shape), "uint8", one.tobytes())]


PROCESSORS: Mapping[str, type[QwenProcessor]] = {"qwen2_vl": QwenProcessor}
"""By family, as `engine.models.vision` names it."""


def prepare(processor: QwenProcessor, question: PrepareImage, pixels: Pixels) -> PreparedImage:
    """Cut an image as the model wants it. Raises `DecodeError` for one that it cannot take."""
    grid, tokens, arrays = processor.prepare(pixels, low=question.detail == "low")
    digest = hashlib.sha256(repr((question.family, question.model_dir, grid, tokens)).encode())
    for part in (question.salt, *(f"{array.name}{array.shape}{array.dtype}".encode() for array in arrays)):
        digest.update(hashlib.sha256(part).digest())
    for array in arrays:
        digest.update(array.data)
    return PreparedImage(digest.digest(), grid, tokens, arrays)
