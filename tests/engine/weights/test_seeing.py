"""What a checkpoint takes is told by its configuration, as the engine would tell it."""

import json
from pathlib import Path

import pytest

from engine.models.vision import FAMILIES
from engine.weights.seeing import IMAGE_TYPES, takes_images


def test_each_family_of_the_engine_is_known_without_it() -> None:
    assert set(FAMILIES) == IMAGE_TYPES


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "qwen2_5_vl", "vision_config": {}}, True),
        ({"model_type": "mistral3", "vision_config": {"model_type": "pixtral"}}, True),
        ({"model_type": "mistral3", "vision_config": {"model_type": "other"}}, False),
        ({"model_type": "llama"}, False),
        ({}, False),
        ([], False),
        ({"model_type": "llava", "vision_config": 7}, False),
    ],
)
def test_what_a_configuration_says(config: object, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not takes_images(tmp_path), "nothing says how images are cut"
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert takes_images(tmp_path) is expected


def test_no_configuration_takes_nothing(tmp_path: Path) -> None:
    assert not takes_images(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff{")
    assert not takes_images(tmp_path)
