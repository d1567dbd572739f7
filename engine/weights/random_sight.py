"""What a random model that sees has beside its weights, so that images reach it, by its configuration alone.

Marks in its tokenizer, a chat template that shows images, and how they are cut for its tower: as the checkpoints of its
family have them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LONGEST_SIDE = 1024
"""Of an image in pixels, for towers that do not say."""


@dataclass(frozen=True, slots=True)
class RandomSight:
    """Of one model."""

    marks: Mapping[int, str]
    """Tokens by id that no text is made of."""
    shown: str
    """What the template shows in the place of an image."""
    others: tuple[str, ...] = ()
    """Marks that may have any id."""
    processing: Mapping[str, Any] = field(default_factory=dict)
    """preprocessor_config.json."""


@dataclass(frozen=True, slots=True)
class _Family:
    """How a family marks images."""

    named: Mapping[str, str]
    """Marks by the fields of the configuration that have their ids; the first stands for an image."""
    others: Callable[[Mapping[str, Any]], tuple[str, ...]]
    """Marks that have an id in the tokenizer alone, by the settings of the processor."""
    processing: Callable[[Mapping[str, Any]], dict[str, Any]]
    """By `vision_config`, with the canvases that the whole configuration names."""
    shown: str | None = None
    """None where it is the first mark."""


def _no_marks(_: Mapping[str, Any]) -> tuple[str, ...]:
    return ()


def _side(vision: Mapping[str, Any]) -> int:
    side = vision.get("image_size") or LONGEST_SIDE
    return int(side[0] if isinstance(side, list | tuple) else side)


def _square(vision: Mapping[str, Any]) -> dict[str, Any]:
    return {"size": {"height": _side(vision), "width": _side(vision)}}


def _half(vision: Mapping[str, Any]) -> dict[str, Any]:
    return _square(vision) | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _qwen(vision: Mapping[str, Any]) -> dict[str, Any]:
    patch, merge = int(vision["patch_size"]), int(vision["spatial_merge_size"])
    token = (patch * merge) ** 2
    return {
        "patch_size": patch, "merge_size": merge, "temporal_patch_size": int(vision["temporal_patch_size"]),
        "size": {"shortest_edge": 4 * token, "longest_edge": 16384 * token},
    }  # fmt: skip


def _squares(vision: Mapping[str, Any]) -> dict[str, Any]:
    side = _side(vision)
    return {"size": {"longest_edge": 4 * side}, "max_image_size": {"longest_edge": side}}


def _marks_of_squares(processing: Mapping[str, Any]) -> tuple[str, ...]:
    sides = processing["size"]["longest_edge"] // processing["max_image_size"]["longest_edge"]
    places = tuple(f"<row_{row + 1}_col_{column + 1}>" for row in range(sides) for column in range(sides))
    return "<fake_token_around_image>", "<global-img>", *places


def _clip(vision: Mapping[str, Any]) -> dict[str, Any]:
    side = _side(vision)
    if "siglip" in str(vision.get("model_type")):
        return _half(vision)
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def _canvases(vision: Mapping[str, Any]) -> dict[str, Any]:
    return _half(vision) | {"image_grid_pinpoints": vision["image_grid_pinpoints"]}


QWEN = _Family(
    {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
     "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"},
    _no_marks, _qwen, "<|vision_start|><|image_pad|><|vision_end|>",
)  # fmt: skip
IDEFICS = _Family({"image_token_id": "<image>"}, _marks_of_squares, _squares)
PIXTRAL = _Family(
    {"image_token_index": "[IMG]"}, lambda _: ("[IMG_BREAK]", "[IMG_END]"),
    lambda vision: {"size": {"longest_edge": _side(vision)}},
)  # fmt: skip

FAMILIES: Mapping[str, _Family] = {
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": _Family(QWEN.named, _no_marks, lambda vision: _half(vision) | _qwen(vision), QWEN.shown),
    "mllama": _Family(
        {"image_token_index": "<|image|>"}, _no_marks,
        lambda vision: _square(vision) | {"max_image_tiles": int(vision["max_num_tiles"])},
    ),
    "gemma3": _Family(
        {"image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>",
         "eoi_token_index": "<end_of_image>"},
        _no_marks, _half, "<start_of_image>",
    ),
    "idefics3": IDEFICS,
    "smolvlm": IDEFICS,
    "internvl": _Family(
        {"image_token_id": "<IMG_CONTEXT>"}, lambda _: ("<img>", "</img>"),
        lambda vision: _square(vision) | {"max_patches": 12},
    ),
    "llava": _Family({"image_token_index": "<image>"}, _no_marks, _clip),
    "llava/pixtral": PIXTRAL,
    "mistral3/pixtral": PIXTRAL,
    "llava_onevision": _Family({"image_token_index": "<image>"}, _no_marks, _canvases),
}  # fmt: skip
"""By model type, with that of the tower where there are several, as `engine.weights.seeing` has them."""


def sight_of(config: Mapping[str, Any]) -> RandomSight | None:
    """The sight of a whole configuration, with all that its type has by default.

    None for a model of text alone, and where marks of images have no rows of their own in the embedding.
    """
    vision, text = config.get("vision_config"), config.get("text_config")
    kind = str(config.get("model_type"))
    if not isinstance(vision, dict) or not isinstance(text, dict):
        return None
    family = FAMILIES.get(f"{kind}/{vision.get('model_type')}") or FAMILIES.get(kind)
    if family is None:
        return None
    ids = {_id(config, name): mark for name, mark in family.named.items()}
    image = next(iter(family.named.values()))
    processing = family.processing({**vision, "image_grid_pinpoints": config.get("image_grid_pinpoints")})
    rows = int(text["vocab_size"]) + (kind == "mllama")  # whose embedding has more rows than the logits
    others = family.others(processing)
    if len(ids) < len(family.named) or not all(0 <= number < rows for number in ids) or rows <= len(ids) + len(others):
        return None
    return RandomSight(ids, family.shown or image, others, processing)


def _id(config: Mapping[str, Any], name: str) -> int:
    """The id in a field, which versions of transformers call differently; -1 where there is none."""
    found = config.get(name, config.get(name.replace("_index", "_id")))
    return found if isinstance(found, int) else -1
