"""Models that see, in numbers: their towers, and what images take of a device's memory beside weights and the KV cache.

A tower is counted with what hands its output to the decoder. Of several ranks each has all of it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

TEXT_TYPES = {"qwen2_5_vl": "qwen2_5_vl_text", "mllama": "mllama_text_model", "gemma3": "gemma3_text"}
"""Models that see and are counted, and the `model_type` of their decoders."""
OMITTED: Mapping[str, Config] = {
    "gemma3": {
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
    }
}  # fmt: skip
"""Sizes of decoders that published files leave to the defaults of their type."""

IMAGE_CACHE_BYTES = 256 << 20
"""Embeddings of images that are kept: about 60 images of a megapixel for a model of 7B in bf16."""
IMAGE_CACHE_SHARE = 0.1
"""Of the memory that is left, at most so much for them."""
CROSS_SHARE = 0.2
"""Of the memory that is left, at most so much for images that tokens look at."""
CROSS_IMAGES = 32
"""And never more than so many of the largest."""
QWEN_PIXELS = 16384 * 28 * 28
"""Of Qwen's largest image, where its processor's own settings, which are not read here, do not say otherwise."""


def decoder_of(config: Config) -> Config:
    """The configuration of what writes text: of a model that sees its text part, else the whole.

    What a file says once for all of the model goes before what its parts say.
    """
    kind, text = str(config.get("model_type")), config.get("text_config")
    known = {"model_type": TEXT_TYPES[kind], **OMITTED.get(kind, {})} if kind in TEXT_TYPES else {}
    if isinstance(text, Mapping):
        whole = {name: config[name] for name in ("quantization_config", "tie_word_embeddings") if name in config}
        return {**known, **text, **whole}
    # Files of Qwen's from before there were parts have the decoder's sizes beside `vision_config`.
    return {**config, "model_type": known["model_type"]} if known else config


def embeddings_room(left: float, largest: int) -> int:
    """Bytes for embeddings that are kept, where `left` are left to them and to the KV cache.

    However little there is, the largest image has room: it is not encoded again for each of its chunks.
    """
    return max(largest, min(IMAGE_CACHE_BYTES, int(left * IMAGE_CACHE_SHARE)))


def looks_room(left: float, unit: int, largest: int) -> int:
    """Units of images that tokens look at, of `unit` bytes each; the largest image has `largest` of them."""
    return min(max(largest, int(left * CROSS_SHARE // unit)), CROSS_IMAGES * largest)


@dataclass(frozen=True, slots=True)
class Held:
    """Numbers that are held at once beside weights while an image is encoded.

    They were counted in transformers' forward pass, operation by operation. What kernels of a GPU take for themselves
    meanwhile is not in it.
    """

    plain: int
    """In the model's dtype."""
    exact: int
    """In fp32."""

    def __add__(self, other: "Held") -> "Held":
        return Held(self.plain + other.plain, self.exact + other.exact)

    def __mul__(self, times: int) -> "Held":
        return Held(self.plain * times, self.exact * times)

    def num_bytes(self, itemsize: int) -> int:
        """Of so many in the model's dtype."""
        return self.plain * itemsize + self.exact * 4


@dataclass(frozen=True, slots=True)
class Tower:
    """What sees, and the largest image there may be."""

    numbers: int
    """Of all weights."""
    units: int
    """Of that image: tokens that stand for it, or tiles that tokens look at."""
    unit: int
    """Numbers that are kept of a unit."""
    peak: Held
    """While that image is encoded, at most."""
    between: Held
    """At most where a layer begins: steps run between slices of the encoding."""
    crosses: bool = False
    """Whether tokens look at images, instead of standing for them."""

    def step_bytes(self, step: int, itemsize: int, context: int) -> int:
        """Memory of the largest step, which takes `step` bytes alone, or of the largest image in a context."""
        peak, between = (
            held.num_bytes(itemsize) * self._units_in(context) // self.units for held in (self.peak, self.between)
        )
        return max(step + between, peak)

    def kept_bytes(self, left: float, itemsize: int, context: int) -> int:
        """What is set aside for images that were encoded, where `left` bytes are left to them and to the KV cache."""
        unit = self.unit * itemsize
        if self.crosses:
            return looks_room(left, unit, self.units) * unit
        return embeddings_room(left, self._units_in(context) * unit)

    def _units_in(self, context: int) -> int:
        if self.crosses:
            return self.units
        rows = math.isqrt(min(self.units, context))
        return rows * (min(self.units, context) // rows)  # about a square, as encoders take it


def tower_of(config: Config) -> Tower | None:
    """The tower of a model of `TEXT_TYPES`; None for any other. Raises KeyError and the like for what is lacking."""
    count = _TOWERS.get(str(config.get("model_type")))
    return None if count is None else count(config["vision_config"], decoder_of(config), config)


def _linear(inputs: int, outputs: int) -> int:
    """Numbers of a product with a bias."""
    return (inputs + 1) * outputs


def _qwen(vision: Config, text: Config, _: Config) -> Tower:
    """Qwen2.5-VL: norms without a bias, an MLP with a gate, and a merger of as many patches as become a token."""
    hidden, inner, out = int(vision["hidden_size"]), int(vision["intermediate_size"]), int(vision["out_hidden_size"])
    patch, frames = int(vision["patch_size"]), int(vision["temporal_patch_size"])
    merged = int(vision["spatial_merge_size"]) ** 2
    pixels = int(vision.get("in_channels", 3)) * patch**2
    block = 2 * hidden + _linear(hidden, 3 * hidden) + _linear(hidden, hidden)
    block += 2 * _linear(hidden, inner) + _linear(inner, hidden)
    merger = hidden + _linear(merged * hidden, merged * hidden) + _linear(merged * hidden, out)
    tokens = QWEN_PIXELS // (patch**2 * merged)
    # Of a patch its pixels, in fp32 once for one frame and once for all, and the cosine and sine of its place.
    shown = Held(pixels * frames, pixels * (1 + frames) + 2 * hidden // int(vision["num_heads"]))
    # While keys are turned: the residual, what was normed, queries, keys and values, and in fp32 queries and keys, with
    # four products of them; or more in an MLP that is wide.
    layer = max(Held(5 * hidden, 6 * hidden), Held(2 * hidden + 3 * inner, 0), key=lambda held: held.num_bytes(2))
    return Tower(
        numbers=pixels * frames * hidden + int(vision["depth"]) * block + merger,
        units=tokens,
        unit=int(text["hidden_size"]),
        peak=(shown + layer) * (tokens * merged),
        between=(shown + Held(hidden, 0)) * (tokens * merged),
    )


def _mllama(vision: Config, text: Config, _: Config) -> Tower:
    """Mllama: tiles that are seen together, by layers and then gated ones, and the states of some layers beside."""
    hidden, inner, tiles = int(vision["hidden_size"]), int(vision["intermediate_size"]), int(vision["max_num_tiles"])
    patch, side = int(vision["patch_size"]), int(vision["image_size"])
    layers, last = int(vision["num_hidden_layers"]), int(vision["num_global_layers"])
    states, shapes = (side // patch) ** 2 + 1, len(vision["supported_aspect_ratios"]) + 1
    pixels, width = int(vision.get("num_channels", 3)), int(text["hidden_size"])
    layer = 4 * hidden**2 + _linear(hidden, inner) + _linear(inner, hidden) + 4 * hidden
    places = states * hidden + shapes * tiles * (states + 2) * hidden + 3  # of patches, of tiles twice, and gates
    heads, kv_heads = int(text["num_attention_heads"]), int(text["num_key_value_heads"])
    dim = int(text.get("head_dim") or width // heads)
    rows = tiles * -(-states // 8) * 8
    # What each layer gave is held to the end, and so are the patches, the mask of all states, and the pixels in fp32,
    # as they came and for all tiles.
    shown = Held(rows * ((layers + last + 1) * hidden + rows), 2 * tiles * pixels * side**2)
    # In the end the states of those layers that are asked for are stacked, put in a row, and joined to the last one's;
    # or an MLP that is wide takes more.
    end = max((2 * len(vision["intermediate_layers_indices"]) + 1) * hidden, 2 * hidden + 2 * inner)
    return Tower(
        numbers=(pixels * patch**2 + 5) * hidden
        + places + (layers + last) * layer + 2 * last
        + _linear(int(vision["vision_output_dim"]), width),
        units=tiles,
        unit=len(text["cross_attention_layers"]) * 2 * kv_heads * dim * states,
        peak=shown + Held(rows * end, 0),
        between=shown,
        crosses=True,
    )  # fmt: skip


def _gemma(vision: Config, text: Config, config: Config) -> Tower:
    """Gemma 3: SigLIP, of whose patches so many become a token."""
    if vision.get("model_type", "siglip_vision_model") != "siglip_vision_model":
        raise ValueError("another tower is not known")
    hidden, inner, width = int(vision["hidden_size"]), int(vision["intermediate_size"]), int(text["hidden_size"])
    patch, side = int(vision["patch_size"]), int(vision["image_size"])
    patches, pixels = (side // patch) ** 2, int(vision.get("num_channels", 3)) * patch**2
    mlp = _linear(hidden, inner) + _linear(inner, hidden)
    layer = 4 * _linear(hidden, hidden) + mlp + 4 * hidden
    head = 4 * _linear(hidden, hidden) + mlp + 3 * hidden if vision.get("vision_use_head", True) else 0
    return Tower(
        numbers=_linear(pixels, hidden) + patches * hidden + int(vision["num_hidden_layers"]) * layer
        + 2 * hidden + head + hidden * width + hidden,
        units=int(config.get("mm_tokens_per_image", 256)),
        unit=width,
        peak=Held(4 * hidden + 2 * inner, pixels) * patches,
        between=Held(2 * hidden, pixels) * patches,
    )  # fmt: skip


_TOWERS: Mapping[str, Callable[[Config, Config, Config], Tower]] = {
    "qwen2_5_vl": _qwen,
    "mllama": _mllama,
    "gemma3": _gemma,
}
