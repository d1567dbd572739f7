"""Which models see, and how: families by the model type of their configurations."""

from engine.models.image_encoder import ImageEncoder
from engine.models.loaded import LoadedModel
from engine.models.vision_cross import MllamaEncoder
from engine.models.vision_qwen import Qwen3Encoder, QwenEncoder
from engine.models.vision_tiles import (
    Gemma3Encoder,
    Idefics3Encoder,
    InternEncoder,
    LlavaEncoder,
    OnevisionEncoder,
    PixtralEncoder,
    SmolEncoder,
)

FAMILIES: dict[str, type[ImageEncoder]] = {
    "qwen2_vl": QwenEncoder,
    "qwen2_5_vl": QwenEncoder,
    "mllama": MllamaEncoder,
    "gemma3": Gemma3Encoder,
    "qwen3_vl": Qwen3Encoder,
    "idefics3": Idefics3Encoder,
    "smolvlm": SmolEncoder,
    "internvl": InternEncoder,
    "llava": LlavaEncoder,
    "llava/pixtral": PixtralEncoder,
    "mistral3/pixtral": PixtralEncoder,
    "llava_onevision": OnevisionEncoder,
}
"""By model type, and that of the tower where a model may have several."""


def family_of(config: object) -> type[ImageEncoder] | None:
    """The family of a configuration, None for a model that does not see, or in a way that is not known here."""
    kind, tower = getattr(config, "model_type", ""), getattr(getattr(config, "vision_config", None), "model_type", "")
    return FAMILIES.get(f"{kind}/{tower}") or FAMILIES.get(str(kind))


def make_encoder(loaded: LoadedModel) -> ImageEncoder | None:
    """The encoder of a model; None where `family_of` finds none."""
    family = family_of(loaded.hf_config)
    return None if family is None else family(loaded)
