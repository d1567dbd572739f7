"""Which models see, and how: families by the model type of their configurations."""

from engine.models.image_encoder import ImageEncoder
from engine.models.loader import LoadedModel
from engine.models.vision_cross import MllamaEncoder
from engine.models.vision_qwen import QwenEncoder
from engine.models.vision_tiles import Gemma3Encoder

FAMILIES: dict[str, type[ImageEncoder]] = {
    "qwen2_vl": QwenEncoder,
    "qwen2_5_vl": QwenEncoder,
    "mllama": MllamaEncoder,
    "gemma3": Gemma3Encoder,
}


def make_encoder(loaded: LoadedModel) -> ImageEncoder | None:
    """The encoder of a model that sees, None for one that does not, or in a way that is not known here."""
    family = FAMILIES.get(str(getattr(loaded.hf_config, "model_type", "")))
    return None if family is None else family(loaded)
