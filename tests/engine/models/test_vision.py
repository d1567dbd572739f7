"""Places of image tokens are those of transformers, for any conversation."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from engine.models.vision_qwen import QwenEncoder
from engine.scheduling.images import PromptImage
from tests.tiny_models import auto_class

IMAGE = 310


class Positions:
    """Both ways to the same positions."""

    def __init__(self, directory: Path) -> None:
        config = AutoConfig.from_pretrained(directory)
        self.model = auto_class(config).from_pretrained(directory)
        self.encoder = object.__new__(QwenEncoder)
        self.encoder._config = config


@pytest.fixture(scope="module")
def both(tiny_model_dir: Callable[[str], Path]) -> Positions:
    return Positions(tiny_model_dir("qwen2_5_vl"))


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.one_of(st.integers(1, 7), st.tuples(st.integers(1, 6), st.integers(1, 6))), min_size=1))
def test_places_are_those_of_transformers(both: Positions, parts: list[int | tuple[int, int]]) -> None:
    tokens: list[int] = []
    images: list[PromptImage] = []
    for part in parts:
        if isinstance(part, int):
            tokens += [5] * part
        else:
            grid = (1, 2 * part[0], 2 * part[1])
            length = both.encoder.num_tokens(grid)
            tokens.append(6)  # adjacent images would be one to transformers
            images.append(PromptImage(len(tokens), length, b"", grid, ()))
            tokens += [IMAGE] * length
    placement = both.encoder.place(len(tokens), tuple(images))
    if not images:
        assert placement is None
        return
    ids = torch.tensor([tokens])
    grids = torch.tensor([image.grid for image in images])
    expected, delta = both.model.model.get_rope_index(ids, (ids == IMAGE).int(), grids)
    assert placement is not None
    assert placement.positions.tolist() == expected[:, 0].tolist()
    assert placement.delta == int(delta.flatten()[0])
