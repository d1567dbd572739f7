"""How each family cuts images, and what stands in its prompts for one. Runs in a worker."""

from collections.abc import Mapping

import numpy as np

from server.images.decode import DecodeError
from server.images.processor import Cut, Pixels, Processor

LOW_DETAIL_PIXELS = 512 * 512
"""What `detail: low` leaves of an image at most."""
MAX_ASPECT = 200


class QwenProcessor(Processor):
    """Qwen2-VL to Qwen3-VL: sides become multiples of two patches, the whole stays within a budget of pixels."""

    module = "qwen2_vl.image_processing_pil_qwen2_vl"
    name = "Qwen2VLImageProcessorPil"

    def prepare(self, pixels: Pixels, *, low: bool) -> Cut:
        """Grid in patches; the patches are `[patches, channels, 1, size, size]`."""
        height, width = pixels.shape[:2]
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise DecodeError(f"its longer side must be at most {MAX_ASPECT} times the shorter, got {width} x {height}")
        pil = self.pil
        smallest, largest = pil.size["shortest_edge"], pil.size["longest_edge"]
        largest = max(smallest, min(largest, LOW_DETAIL_PIXELS)) if low else largest
        found = self.cut(pixels, size={"shortest_edge": smallest, "longest_edge": largest})
        grid = [int(side) for side in found["image_grid_thw"][0]]
        size, frames = pil.patch_size, pil.temporal_patch_size
        patches = np.asarray(found["pixel_values"]).reshape(len(found["pixel_values"]), -1, frames, size, size)
        tokens = grid[0] * grid[1] * grid[2] // pil.merge_size**2
        return Cut(grid, [self.token_id] * tokens, patches[:, :, :1])  # frames are equal


class MllamaProcessor(Processor):
    """Mllama: one to four tiles, as the shape of the image wants them. One token stands in the prompt."""

    module = "mllama.image_processing_pil_mllama"
    name = "MllamaImageProcessorPil"

    def prepare(self, pixels: Pixels, *, low: bool) -> Cut:
        """Grid in tiles, down and across; the tiles are `[tiles, channels, side, side]`."""
        found = self.cut(pixels, **({"max_image_tiles": 1} if low else {}))
        tiles = int(found["num_tiles"][0][0])
        most = 1 if low else self.pil.max_image_tiles
        # As the processor counts arrangements.
        arrangements = [(a, b) for a in range(1, most + 1) for b in range(1, most + 1) if a * b <= most]
        grid = arrangements[int(np.asarray(found["aspect_ratio_ids"]).flat[0]) - 1]
        return Cut(list(grid), [self.token_id], np.asarray(found["pixel_values"])[0, 0, :tiles])


class Gemma3Processor(Processor):
    """Gemma 3: one square, whatever the image's shape."""

    module = "gemma3.image_processing_pil_gemma3"
    name = "Gemma3ImageProcessorPil"

    def prepare(self, pixels: Pixels, *, low: bool) -> Cut:
        """A tile, between the tokens that begin and end an image."""
        found = self.cut(pixels, do_pan_and_scan=False)
        config = self.config
        begin, end = config.get("boi_token_index", 255_999), config.get("eoi_token_index", 256_000)
        tokens = [self.token_id] * int(config.get("mm_tokens_per_image", 256))
        return Cut([1], [begin, *tokens, end], np.asarray(found["pixel_values"]))


PROCESSORS: Mapping[str, type[Processor]] = {
    "qwen2_vl": QwenProcessor,
    "mllama": MllamaProcessor,
    "gemma3": Gemma3Processor,
}
"""By family, as `engine.models.vision` names it."""
