"""Which checkpoints are of models that take images here, by their configurations alone: no torch is needed to tell."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.weights.checkpoint import read_config

IMAGE_TYPES = frozenset(
    {
        "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mllama", "gemma3", "idefics3", "smolvlm", "internvl", "llava",
        "llava/pixtral", "mistral3/pixtral", "llava_onevision",
    }
)  # fmt: skip
"""Model types, with that of the tower where there are several; `engine.models.vision` has an encoder for each."""


PROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")
"""One of which says how images are cut for a model."""


def says_how(directory: Path) -> bool:
    """Whether a directory says how images are cut. Without that a model would get them in another size than its own."""
    return any((directory / name).is_file() for name in PROCESSING_FILES)


def takes_images(directory: Path) -> bool:
    """Whether the model in a directory does; False where its configuration cannot be read."""
    return is_of_images(read_config(directory) or {}) and says_how(directory)


def is_of_images(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of such a model."""
    kind, vision = config.get("model_type"), config.get("vision_config") or {}
    if not isinstance(vision, dict):
        return False
    return not IMAGE_TYPES.isdisjoint({str(kind), f"{kind}/{vision.get('model_type')}"})
