"""Patches that come one by one are one product, with the convolution's parameters and names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.models.vision_patches import PatchProduct, replace_patches
from tests.engine.models.test_vision_windows import built
from tests.engine.test_oracle import make_engine
from tests.vision_models import SEEING, build_seeing_model


@pytest.mark.parametrize("family", SEEING)
def test_only_convolutions_of_one_place_are_replaced(family: str, tmp_path: Path) -> None:
    model: Any = built(build_seeing_model(family, tmp_path))
    names = {name for name, _ in model.named_parameters()}
    assert replace_patches(model) == ("qwen" in family)
    assert {name for name, _ in model.named_parameters()} == names


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_the_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4), bias=bias)
    patches = torch.randn(5, 3, 2, 4, 4)
    torch.testing.assert_close(PatchProduct(convolution)(patches), convolution(patches).view(5, 8))


def test_an_engine_has_it_in_its_tower(tmp_path: Path) -> None:
    runner: Any = make_engine(build_seeing_model("qwen2_5_vl", tmp_path))._runner
    assert any(isinstance(module, PatchProduct) for module in runner.model.modules())
