"""What an image costs others, and what one that was seen before spares: the promises of `make latency` about images.

The model is made here, with random weights: a small text model behind a tower of 384 dimensions and twelve layers, as
the smallest SigLIPs are, which sees an image as 1,024 patches.
"""

import tempfile
from pathlib import Path
from typing import Any

from bench.image_load import ImageLoad, Picture
from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.messages import ImageArray
from engine.weights.seeing import PROCESSING_FILES

SIDE, PATCH = 512, 16
IMAGE_TOKEN = 5
NUM_TOKENS = (SIDE // PATCH) ** 2

CONFIG: dict[str, Any] = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": IMAGE_TOKEN,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "text_config": {
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 3, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    },
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
        "num_attention_heads": 6, "image_size": SIDE, "patch_size": PATCH,
    },
}  # fmt: skip


def build_model(directory: Path) -> None:
    """Save the model, which cuts images as its family does by default."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    options = {name: value for name, value in CONFIG.items() if name != "model_type"}
    config = AutoConfig.for_model(CONFIG["model_type"], **options)
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    (directory / PROCESSING_FILES[0]).write_text("{}")


class ImageBench:
    """One engine that sees, and images that are all different."""

    def __init__(self, threads: int) -> None:
        self._directory = tempfile.TemporaryDirectory()
        build_model(Path(self._directory.name))
        config = EngineConfig(
            name="bench", source=self._directory.name, device="cpu", memory="1GiB", threads=threads, context=4096
        )
        self._engine: Engine = build_engine(config, lambda *_: None)[0]
        pixels = ImageArray("pixel_values", [1, 3, SIDE, SIDE], "uint8", bytes(3 * SIDE * SIDE))
        self._load = ImageLoad(self._engine, Picture([1], [pixels], [IMAGE_TOKEN] * NUM_TOKENS, 0, NUM_TOKENS))

    def close(self) -> None:
        """End the engine and remove the model."""
        self._engine.close()
        self._directory.cleanup()

    def second_turn(self) -> tuple[float, float]:
        """Time to first token about an image, and again about the same one, in seconds."""
        first_token = self._load.first_token
        first_token(1, [8, 9, 10])
        cold = min(first_token(image, [8, 9, 10]) for image in range(2, 5))
        return cold, min(first_token(image, [8, 9, 10, 11, 12, 13]) for image in range(2, 5))

    def beside_images(self, num_streams: int, num_images: int) -> tuple[list[float], list[float]]:
        """Seconds of each step of so many streams of text: alone, and until so many images are seen."""
        return self._load.beside(num_streams, num_images)
