"""A random model that sees takes images as the models of its family do, whatever else its configuration says."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoConfig

from engine.errors import ModelLoadError
from engine.models.vision import family_of
from engine.weights.random_model import random_model_dir, told_fields
from engine.weights.random_sight import FAMILIES, sight_of
from engine.weights.seeing import IMAGE_TYPES, takes_images
from server.images.families import PROCESSORS
from server.prompt.image_spans import ImageTokens, expand
from server.prompt.tokenizer import ChatTokenizer
from tests.tiny_models import VISION_FAMILIES, VOCAB_SIZE
from tests.vision_models import SEEING, build_seeing_model, noise


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))


def test_every_family_that_takes_images_is_known() -> None:
    assert FAMILIES.keys() == IMAGE_TYPES


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_images_have_the_tokens_that_the_tower_gives(family: str, tmp_path: Path) -> None:
    AutoConfig.for_model(**VISION_FAMILIES[family]).save_pretrained(tmp_path)
    takes_its_images(random_model_dir(str(tmp_path)))


@pytest.mark.parametrize("name", ["Qwen2.5-VL-7B", "Llama-3.2-11B-Vision", "qwen3_vl"])
def test_so_have_those_of_shipped_shapes_and_of_types_alone(name: str) -> None:
    takes_its_images(random_model_dir(name))


def takes_its_images(directory: Path) -> None:
    """A prompt with two images is what the engine expects of it."""
    assert takes_images(directory)
    config = AutoConfig.from_pretrained(directory)
    kind = family_of(config)
    assert kind is not None
    encoder = object.__new__(kind)
    encoder._config = config
    info = encoder.info
    processor = PROCESSORS[info.family](directory, info.token_id)
    cuts = [processor.prepare(np.asarray(noise(60, 90)), low=low, alone=False) for low in (False, True)]
    tokenizer = ChatTokenizer.load(directory)
    image = {"type": "image"}
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, image, image]}]
    shown = tokenizer.encode_prompt(messages, images=info)
    ids, spans = expand(shown, ImageTokens(info, tuple(cut.token_ids for cut in cuts)), 2)
    for cut, (start, length) in zip(cuts, spans, strict=True):
        assert ids[start : start + length].count(info.token_id) == encoder.num_tokens(tuple(cut.grid)) > 0
    marks = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert all(marks.id_to_token(number) is not None for number in ids)
    assert max(ids) <= config.get_text_config().vocab_size


@pytest.mark.parametrize("own", [True, False])
def test_a_directory_with_a_tokenizer_has_a_processor_too(own: bool, tmp_path: Path) -> None:
    """Its own, else one by its configuration."""
    directory = build_seeing_model("qwen2_5_vl", tmp_path / "model")
    if not own:
        (directory / "preprocessor_config.json").unlink()
    made = random_model_dir(str(directory))
    takes_its_images(made)
    size = json.loads((made / "preprocessor_config.json").read_text())["size"]
    assert (size == SEEING["qwen2_5_vl"].processor["size"]) is own
    assert (made / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("wrong", [{"image_token_id": -1}, {"image_token_id": 311}, {"vision_end_token_id": 312}])
def test_marks_that_are_none_make_no_model_that_sees(wrong: dict[str, int], tmp_path: Path) -> None:
    AutoConfig.for_model(**VISION_FAMILIES["qwen2_5_vl"] | wrong).save_pretrained(tmp_path)
    assert not takes_images(random_model_dir(str(tmp_path)))


def test_a_model_without_a_row_for_images_answers_text(tmp_path: Path) -> None:
    tiny = VISION_FAMILIES["qwen2_5_vl"] | {"image_token_id": VOCAB_SIZE}
    assert sight_of(AutoConfig.for_model(**tiny).to_dict()) is None
    AutoConfig.for_model(**tiny).save_pretrained(tmp_path)
    directory = random_model_dir(str(tmp_path))
    assert not (directory / "preprocessor_config.json").exists()
    template = json.loads((directory / "tokenizer_config.json").read_text())["chat_template"]
    assert "image" not in template


def test_text_has_no_sight() -> None:
    assert sight_of({"model_type": "llama", "vocab_size": 300}) is None


def test_a_field_of_a_part_is_named_behind_a_point() -> None:
    small = "text_config.num_hidden_layers=1&text_config.hidden_size=64&vision_config.depth=3"
    config = AutoConfig.from_pretrained(random_model_dir(f"Qwen2.5-VL-7B?{small}"))
    assert (config.text_config.num_hidden_layers, config.text_config.hidden_size) == (1, 64)
    assert config.text_config.vocab_size == 152064 and config.vision_config.depth == 3
    assert told_fields(f"Qwen2.5-VL-7B?{small}")["vision_config"]["depth"] == 3
    of_type = AutoConfig.from_pretrained(random_model_dir("mllama?text_config.num_hidden_layers=4&seed=1"))
    assert of_type.text_config.num_hidden_layers == 4 and of_type.vision_config.max_num_tiles == 4
    for wrong in ("text_config.depth=1", "vision_config.depth.x=1", "no_config.depth=1"):
        with pytest.raises(ModelLoadError, match=f"'{wrong.partition('=')[0]}' is not a field"):
            random_model_dir(f"Qwen2.5-VL-7B?{wrong}")
