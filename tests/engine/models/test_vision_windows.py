"""Windows of one size at a time: what transformers' tower says of any image, with a tenth of the calls."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedModel

from engine.models.vision_windows import WindowAttention, groups_of, replace_windows
from tests.engine.test_oracle import make_engine
from tests.tiny_models import auto_class
from tests.vision_models import build_seeing_model

CPU = torch.device("cpu")


def built(directory: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(directory)
    model: PreTrainedModel = auto_class(config).from_pretrained(directory, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' model, and ours."""
    directory = build_seeing_model("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))
    theirs, ours = built(directory), built(directory)
    assert replace_windows(ours) == 2
    return theirs, ours


def features(model: Any, grid: tuple[int, int, int]) -> torch.Tensor:
    patches = torch.randn(grid[1] * grid[2], 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.cat(list(model.get_image_features(patches, torch.tensor([grid])).pooler_output))


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 14), width=st.integers(1, 14))
def test_features_are_those_of_transformers(both: tuple[Any, Any], height: int, width: int) -> None:
    theirs, ours = both
    grid = (1, 2 * height, 2 * width)
    torch.testing.assert_close(features(ours, grid), features(theirs, grid), atol=1e-5, rtol=1e-5)


def test_a_large_image_takes_a_call_for_each_size(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []
    attend = F.scaled_dot_product_attention

    def counted(query: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        calls.append(query.shape)
        return attend(query, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    _, ours = both
    grid = (1, 26, 28)
    features(ours, grid)
    # One layer in windows of 8 x 8 patches: 3 x 3 whole ones, and those cut at two sides and the corner; one without.
    assert sorted((shape[0], shape[2]) for shape in calls) == [(1, 8), (1, 26 * 28), (3, 16), (3, 32), (9, 64)]


def test_windows_of_one_size_are_not_gathered() -> None:
    (group,) = groups_of([0, 4, 8, 12], CPU)
    assert (group.number, group.size, group.rows) == (3, 4, None)


def test_an_empty_window_is_none() -> None:
    assert [(group.number, group.size) for group in groups_of([0, 4, 4, 6], CPU)] == [(1, 4), (1, 2)]


def test_an_engine_has_them_in_its_tower(tmp_path: Path) -> None:
    runner: Any = make_engine(build_seeing_model("qwen2_5_vl", tmp_path))._runner
    assert sum(isinstance(module, WindowAttention) for module in runner.model.modules()) == 2
