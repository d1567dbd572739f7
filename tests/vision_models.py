"""Tiny random models that see, as directories that the server could load, and how transformers itself is asked.

`cut` goes the way of the server, through the worker's processors; `inputs` the way of transformers, in floats. What
comes out of both on the same images has to be the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, PreTrainedModel

from engine.messages import AddImage, AddRequest, ImageInfo, ImageSpan
from engine.models.vision import family_of
from engine.weights.random_sight import RandomSight
from engine.weights.random_tokenizer import write_tokenizer
from server.images.families import PROCESSORS
from server.images.messages import PreparedImage, PrepareImage
from server.images.processor import Processor, prepare
from server.prompt.image_spans import ImageTokens, expand
from tests.tiny_models import EOS_TOKEN_ID, VOCAB_SIZE, auto_class, build_tiny_model

Inputs = Callable[[Any, list[int], list[Image.Image]], dict[str, Any]]
"""From transformers' image processor, the prompt and its images, what `generate` takes beside the prompt."""


@dataclass(frozen=True)
class Seeing:
    """One family."""

    processor: dict[str, Any]
    """preprocessor_config.json."""
    inputs: Inputs
    text: Callable[[Any, Image.Image], str]
    """What transformers' own processor puts into a prompt for an image."""
    marks: dict[int, str] = field(default_factory=dict)
    """Control tokens by id."""
    shown: int = 310
    """The token that a template shows for an image."""
    around: tuple[str, str] = ("", "")
    """What a template puts before and behind it."""

    @property
    def sight(self) -> RandomSight:
        """What stands beside the weights."""
        before, behind = self.around
        return RandomSight(self.marks, before + self.marks[self.shown] + behind, (), self.processor)


def _qwen(processor: Any, ids: list[int], images: list[Image.Image]) -> dict[str, Any]:
    found = processor(images, return_tensors="pt")
    return {
        "pixel_values": found["pixel_values"],
        "image_grid_thw": found["image_grid_thw"],
        "mm_token_type_ids": (torch.tensor([ids]) == 310).int(),
    }


def _mllama(processor: Any, ids: list[int], images: list[Image.Image]) -> dict[str, Any]:
    from transformers.models.mllama import processing_mllama as ours

    found = processor([images], return_tensors="pt")
    tiles = found.pop("num_tiles")
    mask = ours.convert_sparse_cross_attention_mask_to_dense(
        [ours.get_cross_attention_token_mask(ids, VOCAB_SIZE)], tiles, 4, len(ids)
    )
    return {**found, "cross_attention_mask": torch.from_numpy(mask)}


def _gemma3(processor: Any, ids: list[int], images: list[Image.Image]) -> dict[str, Any]:
    found = processor(images, return_tensors="pt")
    return {"pixel_values": found["pixel_values"], "token_type_ids": (torch.tensor([ids]) == 310).int()}


def _tiles(processor: Any, ids: list[int], images: list[Image.Image]) -> dict[str, Any]:
    return {"pixel_values": processor(images, return_tensors="pt")["pixel_values"]}


def _idefics(processor: Any, ids: list[int], images: list[Image.Image]) -> dict[str, Any]:
    found = processor([images], return_tensors="pt")
    return {name: found[name] for name in ("pixel_values", "pixel_attention_mask")}


def _intern(processor: Any, ids: list[int], images: list[Image.Image]) -> dict[str, Any]:
    return {"pixel_values": processor(images, crop_to_patches=True, return_tensors="pt")["pixel_values"]}


def _onevision(processor: Any, ids: list[int], images: list[Image.Image]) -> dict[str, Any]:
    return dict(processor([images], return_tensors="pt"))


def _pixtral(merge: int) -> Inputs:
    def inputs(processor: Any, ids: list[int], images: list[Image.Image]) -> dict[str, Any]:
        side = 16 * merge
        found = processor(images, patch_size={"height": side, "width": side}, return_tensors="pt")
        return {"pixel_values": found["pixel_values"], "image_sizes": torch.as_tensor(found["image_sizes"])}

    return inputs


def _said(module: str, name: str, find: Callable[[Any, Image.Image], Any], **settings: Any) -> Any:
    """What a processor of transformers puts into a prompt, without the tokenizer that it wants to be made with."""

    def text(pil: Any, image: Image.Image) -> str:
        kind = getattr(import_module(f"transformers.models.{module}"), name)
        found = find(pil, image)
        return str(kind.replace_image_token(SimpleNamespace(**settings, image_processor=pil), found, 0))

    return text


def _idefics_text(family: str, name: str) -> Any:
    return _said(
        f"{family}.processing_{family}",
        name,
        lambda pil, image: pil([[image]], return_row_col_info=True),
        fake_image_token="<fake_token_around_image>",
        global_image_tag="<global-img>",
        global_image_token="<global-img>",
        image_token="<image>",
        image_seq_len=4,
    )


def _pixtral_text(merge: int) -> Any:
    """As transformers' processor, which cannot be imported without torchvision."""

    def text(pil: Any, image: Image.Image) -> str:
        side = 16 * merge
        height, width = pil([image], patch_size={"height": side, "width": side})["image_sizes"][0]
        marks = (["[IMG]"] * (width // side) + ["[IMG_BREAK]"]) * (height // side)
        return "".join([*marks[:-1], "[IMG_END]"])

    return text


def _onevision_text(pil: Any, image: Image.Image) -> str:
    """Of an image that is not alone."""
    return "<image>" * 17


IDEFICS_MARKS = {310: "<image>", 311: "<fake_token_around_image>", 312: "<global-img>"} | {
    313 + 2 * row + column: f"<row_{row + 1}_col_{column + 1}>" for row in range(2) for column in range(2)
}
IDEFICS_PROCESSOR = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
PIXTRAL_MARKS = {310: "[IMG]", 311: "[IMG_BREAK]", 312: "[IMG_END]"}

SEEING: dict[str, Seeing] = {
    "qwen2_5_vl": Seeing(
        {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 24}},
        _qwen,
        lambda pil, image: "<|image_pad|>" * (int(pil(image)["image_grid_thw"][0].prod()) // 4),
        {310: "<|image_pad|>", 311: "<|video_pad|>", 312: "<|vision_start|>", 313: "<|vision_end|>"},
        around=("<|vision_start|>", "<|vision_end|>"),
    ),
    "mllama": Seeing(
        {"size": {"height": 28, "width": 28}, "max_image_tiles": 4},
        _mllama,
        lambda pil, image: "<|image|>",
        {VOCAB_SIZE: "<|image|>"},
        shown=VOCAB_SIZE,
    ),
    "gemma3_vision": Seeing(
        {"size": {"height": 112, "width": 112}},
        _gemma3,
        lambda pil, image: f"\n\n<start_of_image>{'<image_soft_token>' * 16}<end_of_image>\n\n",
        {310: "<image_soft_token>", 311: "<start_of_image>", 312: "<end_of_image>"},
        shown=311,
    ),
    "qwen3_vl": Seeing(
        {"size": {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 24}, "patch_size": 16,
         "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        _qwen,
        lambda pil, image: "<|image_pad|>" * (int(pil(image)["image_grid_thw"][0].prod()) // 4),
        {310: "<|image_pad|>", 311: "<|video_pad|>", 312: "<|vision_start|>", 313: "<|vision_end|>"},
        around=("<|vision_start|>", "<|vision_end|>"),
    ),
    "idefics3": Seeing(IDEFICS_PROCESSOR, _idefics, _idefics_text("idefics3", "Idefics3Processor"), IDEFICS_MARKS),
    "smolvlm": Seeing(IDEFICS_PROCESSOR, _idefics, _idefics_text("smolvlm", "SmolVLMProcessor"), IDEFICS_MARKS),
    "internvl": Seeing(
        {"size": {"height": 56, "width": 56}, "max_patches": 6},
        _intern,
        _said(
            "internvl.processing_internvl", "InternVLProcessor",
            lambda pil, image: pil([image], crop_to_patches=True),
            start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>", image_seq_length=4,
        ),
        {310: "<IMG_CONTEXT>", 311: "<img>", 312: "</img>"},
    ),
    "llava": Seeing(
        {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
        _tiles,
        lambda pil, image: "<image>" * 16,
        {310: "<image>"},
    ),
    "llava_siglip": Seeing(
        {"size": {"height": 56, "width": 56}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        _tiles,
        lambda pil, image: "<image>" * 16,
        {310: "<image>"},
    ),
    "pixtral": Seeing({"size": {"longest_edge": 112}}, _pixtral(1), _pixtral_text(1), PIXTRAL_MARKS),
    "mistral3": Seeing({"size": {"longest_edge": 112}}, _pixtral(2), _pixtral_text(2), PIXTRAL_MARKS),
    "llava_onevision": Seeing(
        {"size": {"height": 56, "width": 56}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
         "image_grid_pinpoints": [[56 * a, 56 * b] for a in range(1, 4) for b in range(1, 4)]},
        _onevision,
        _onevision_text,
        {310: "<image>", 311: "<video>"},
    ),
}  # fmt: skip


def build_seeing_model(family: str, directory: Path) -> Path:
    """A tiny model of a family with a tokenizer, an image processor and a chat template."""
    build_tiny_model(family, directory)
    write_tokenizer(directory, VOCAB_SIZE, EOS_TOKEN_ID, SEEING[family].sight)
    return directory


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """An image that no other is like."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@lru_cache(maxsize=4)
def oracle(directory: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    """transformers' own model, as it attends without us."""
    model_class = auto_class(AutoConfig.from_pretrained(directory))
    model = model_class.from_pretrained(directory, dtype=dtype, attn_implementation="eager").to(device).eval()
    for layer in getattr(model.get_decoder(), "layers", ()):
        if hasattr(layer, "cross_attn"):
            _blind_before_images(layer)
    return model


def _blind_before_images(layer: Any) -> None:
    """Let tokens before the first image get nothing of a layer's attention, as they get nothing of its MLP."""

    def note(module: Any, arguments: Any, options: dict[str, Any]) -> None:
        module.cross_attn.shown = options["full_text_row_masked_out_mask"]

    def hide(module: Any, arguments: Any, output: Any) -> Any:
        return (output[0] if module.shown is None else module.shown[:, 0] * output[0], *output[1:])

    layer.register_forward_pre_hook(note, with_kwargs=True)
    layer.cross_attn.register_forward_hook(hide)


class Eyes:
    """Both ways of one model."""

    def __init__(self, family: str, directory: Path) -> None:
        self.family, self.directory, self.seeing = family, directory, SEEING[family]
        self.config = AutoConfig.from_pretrained(directory)
        kind = family_of(self.config)
        assert kind is not None
        encoder = object.__new__(kind)
        encoder._config = self.config
        self.info: ImageInfo = encoder.info
        assert self.info.shown_id == self.seeing.shown
        self.processor: Processor = PROCESSORS[self.info.family](directory, self.info.token_id)

    @cache  # noqa: B019
    def cut(self, height: int, width: int, seed: int = 0, *, alone: bool = True) -> PreparedImage:
        """As the worker does."""
        question = PrepareImage(
            str(self.directory), self.info.family, self.info.token_id, "auto", b"", 1 << 24, 1 << 12, alone
        )
        return prepare(self.processor, question, np.asarray(noise(height, width, seed)))

    def prompt(self, parts: Sequence[Any]) -> tuple[list[int], list[AddImage], list[ImageSpan]]:
        """Parts are tokens, lists of tokens, and `(height, width, seed)` of images."""
        ids: list[int] = []
        images: list[PreparedImage] = []
        alone = sum(isinstance(part, tuple) for part in parts) == 1
        for part in parts:
            if isinstance(part, tuple):
                images.append(self.cut(*part, alone=alone))
                ids.append(self.info.shown_id)
            else:
                ids += part if isinstance(part, list) else [part]
        tokens, spans = expand(ids, ImageTokens(self.info, tuple(image.token_ids for image in images)), len(images))
        placed = [ImageSpan(s, n, image.digest) for (s, n), image in zip(spans, images, strict=True)]
        return tokens, [AddImage(image.digest, image.grid, image.arrays) for image in images], placed

    def generate(self, parts: Sequence[Any], max_tokens: int, **options: Any) -> list[int]:
        """What transformers says, greedily."""
        tokens, _, _ = self.prompt(parts)
        with torch.inference_mode():
            output = oracle(self.directory).generate(
                **self.own_inputs(parts, tokens), max_new_tokens=max_tokens, do_sample=False, **options
            )
        return list(output[0, len(tokens) :].tolist())

    def own_inputs(self, parts: Sequence[Any], tokens: list[int], device: str = "cpu") -> dict[str, Any]:
        """What transformers' model takes of a prompt's `tokens`, which more may follow, and of the images in it."""
        ids = torch.tensor([tokens])
        found: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        images = [noise(*part) for part in parts if isinstance(part, tuple)]
        if images:
            found |= self.seeing.inputs(self.processor.pil, tokens, images)
        return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in found.items()}

    def add(self, engine: Any, request_id: int, parts: Sequence[Any], params: Any, **options: Any) -> None:
        """Ask the engine."""
        tokens, images, spans = self.prompt(parts)
        for image in images:
            engine.add_image(image)
        engine.add(AddRequest(request_id, tokens, params, images=spans, **options))
