"""How each family cuts images, and what stands in its prompts for one. Runs in a worker."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.anyres import anyres_tokens
from server.images.decode import DecodeError
from server.images.processor import Cut, Pixels, Processor

LOW_DETAIL_PIXELS = 512 * 512
"""What `detail: low` leaves of an image at most."""
LOW_DETAIL_SIDE = 512
"""Or of its longer side, in families that know no number of pixels."""
MAX_ASPECT = 200


class QwenProcessor(Processor):
    """Qwen2-VL to Qwen3-VL: sides become multiples of two patches, the whole stays within a budget of pixels."""

    module = "qwen2_vl.image_processing_pil_qwen2_vl"
    name = "Qwen2VLImageProcessorPil"

    def prepare(self, pixels: Pixels, *, low: bool, alone: bool) -> Cut:
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

    def prepare(self, pixels: Pixels, *, low: bool, alone: bool) -> Cut:
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

    def prepare(self, pixels: Pixels, *, low: bool, alone: bool) -> Cut:
        """A tile, between the tokens that begin and end an image."""
        found = self.cut(pixels, do_pan_and_scan=False)
        config = self.config
        begin, end = config.get("boi_token_index", 255_999), config.get("eoi_token_index", 256_000)
        tokens = [self.token_id] * int(config.get("mm_tokens_per_image", 256))
        return Cut([1], [begin, *tokens, end], np.asarray(found["pixel_values"]))


class Idefics3Processor(Processor):
    """Idefics3, SmolVLM: rows and columns of squares, then all of the image as one."""

    module = "idefics3.image_processing_pil_idefics3"
    name = "Idefics3ImageProcessorPil"

    def prepare(self, pixels: Pixels, *, low: bool, alone: bool) -> Cut:
        """Grid in rows and columns, (0, 0) for one square alone, between marks that say which is which."""
        found = self.cut(pixels, return_row_col_info=True, **({"do_image_splitting": False} if low else {}))
        rows, columns = int(found["rows"][0][0]), int(found["cols"][0][0])
        vision = self.config.get("vision_config", {})
        scale = int(self.config.get("scale_factor", 2))
        side = int(vision.get("image_size", 364)) // int(vision.get("patch_size", 14)) // scale
        square = "<image>" * side**2
        fake = "<fake_token_around_image>"
        text = ""
        for row in range(1, rows + 1):
            text += "".join(f"{fake}<row_{row}_col_{column}>{square}" for column in range(1, columns + 1)) + "\n"
        text += "\n" if rows else ""
        text += f"{fake}<global-img>{square}{fake}"
        return Cut([rows, columns], self.encoded(text), np.asarray(found["pixel_values"])[0])


class SmolProcessor(Idefics3Processor):
    """SmolVLM cuts by a processor of its own."""

    module = "smolvlm.image_processing_pil_smolvlm"
    name = "SmolVLMImageProcessorPil"


class InternProcessor(Processor):
    """InternVL: up to a dozen tiles, as the shape of the image wants them, then all of it as one."""

    module = "got_ocr2.image_processing_pil_got_ocr2"
    name = "GotOcr2ImageProcessorPil"

    def prepare(self, pixels: Pixels, *, low: bool, alone: bool) -> Cut:
        """The tiles, between the marks that begin and end an image."""
        found = self.cut(pixels, crop_to_patches=not low)
        tiles = np.asarray(found["pixel_values"])
        begin, end = (self.mark(name, default) for name, default in (("start", "<img>"), ("end", "</img>")))
        tokens = [self.token_id] * int(self.config.get("image_seq_length", 256)) * len(tiles)
        return Cut([len(tiles)], [*self.encoded(begin), *tokens, *self.encoded(end)], tiles)

    def mark(self, name: str, default: str) -> str:
        """A mark as the tokenizer's configuration has it."""
        path = self.directory / "tokenizer_config.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        named = content.get(f"{name}_image_token") or content.get("extra_special_tokens", {}).get(f"{name}_image_token")
        return named if isinstance(named, str) else default


class LlavaProcessor(Processor):
    """LLaVA: one square. CLIP shows its middle, SigLIP all of it, pressed into shape."""

    module = "clip.image_processing_pil_clip"
    name = "CLIPImageProcessorPil"

    def __init__(self, directory: Path, token_id: int) -> None:
        """As `Processor`; the kind of processor is that of the tower."""
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self._vision: dict[str, Any] = config.get("vision_config", {})
        self._is_clip = "siglip" not in self._vision.get("model_type", "clip")
        if not self._is_clip:
            self.module, self.name = "siglip.image_processing_pil_siglip", "SiglipImageProcessorPil"
        super().__init__(directory, token_id)

    def prepare(self, pixels: Pixels, *, low: bool, alone: bool) -> Cut:
        """A tile."""
        tile = np.asarray(self.cut(pixels)["pixel_values"])
        tokens = (tile.shape[-1] // int(self._vision.get("patch_size", 14))) ** 2 + self._is_clip
        tokens -= self.config.get("vision_feature_select_strategy", "default") == "default"
        return Cut([1], [self.token_id] * tokens, tile)


class OnevisionProcessor(Processor):
    """LLaVA-OneVision: all of the image as one tile, then up to nine times as many tokens as its shape wants.

    An image that is not alone in its conversation is one tile, as the model was trained.
    """

    module = "llava_onevision.image_processing_pil_llava_onevision"
    name = "LlavaOnevisionImageProcessorPil"

    def prepare(self, pixels: Pixels, *, low: bool, alone: bool) -> Cut:
        """Grid: height, width and the number of tiles."""
        height, width = pixels.shape[:2]
        vision = self.config.get("vision_config", {})
        tile = int(vision.get("image_size", 384))
        side = tile // int(vision.get("patch_size", 14))
        if low or not alone:
            # The processor does so for all images of a list that has several.
            tiles = np.asarray(self.cut_several(pixels)["pixel_values"][0])[:1]
            return Cut([height, width, 1], [self.token_id] * (side**2 + 1), tiles)
        tiles = np.asarray(self.cut(pixels)["pixel_values"])[0]
        tokens = anyres_tokens(
            height,
            width,
            tile=tile,
            side=side,
            canvases=self.pil.image_grid_pinpoints,
            max_tiles=int(self.config.get("vision_aspect_ratio", "anyres_max_9").removeprefix("anyres_max_")),
        )
        return Cut([height, width, len(tiles)], [self.token_id] * tokens, tiles)


class PixtralProcessor(Processor):
    """Pixtral, Mistral Small 3: an image in its own shape, row by row."""

    module = "pixtral.image_processing_pil_pixtral"
    name = "PixtralImageProcessorPil"

    def prepare(self, pixels: Pixels, *, low: bool, alone: bool) -> Cut:
        """Grid in tokens; each row has a mark behind it."""
        patch = int(self.config.get("vision_config", {}).get("patch_size", 16))
        patch *= int(self.config.get("spatial_merge_size", 1 if self.config["model_type"] == "llava" else 2))
        longest = self.pil.size.get("longest_edge") or max(self.pil.size["height"], self.pil.size["width"])
        longest = min(longest, LOW_DETAIL_SIDE) if low else longest
        height, width = pixels.shape[:2]
        if max(height, width) > longest * min(height, width):  # made smaller, nothing would be left of it
            raise DecodeError(f"its longer side must be at most {longest} times the shorter, got {width} x {height}")
        found = self.cut(pixels, patch_size={"height": patch, "width": patch}, size={"longest_edge": longest})
        height, width = (int(side) // patch for side in np.asarray(found["image_sizes"])[0])
        row = "[IMG]" * width
        text = "[IMG_BREAK]".join([row] * height) + "[IMG_END]"
        return Cut([height, width], self.encoded(text), np.asarray(found["pixel_values"]))


PROCESSORS: Mapping[str, type[Processor]] = {
    "qwen2_vl": QwenProcessor,
    "mllama": MllamaProcessor,
    "gemma3": Gemma3Processor,
    "idefics3": Idefics3Processor,
    "smolvlm": SmolProcessor,
    "internvl": InternProcessor,
    "llava": LlavaProcessor,
    "llava_onevision": OnevisionProcessor,
    "pixtral": PixtralProcessor,
}
"""By family, as `engine.models.vision` names it."""
