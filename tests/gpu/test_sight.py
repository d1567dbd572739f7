"""Models that see on a GPU: their towers and what comes of images, against transformers; and what images take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.sizing.shape import FP8_CAPABILITY
from tests.gpu import sight_checks
from tests.gpu.checks import FP8_ROUNDING_RATIO
from tests.vision_models import SEEING, Eyes

HAS_FP8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= FP8_CAPABILITY
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

EyesOf = Callable[[str], Eyes]
KINDS = ["qwen2_5_vl", "mllama"]
"""Tokens that stand for images, at places of their own, and tokens that look at images."""
OF_THEIR_OWN = [*KINDS, "gemma3_vision", "qwen3_vl"]
"""Families whose decoder sees images in a way of its own."""


@pytest.mark.parametrize("family", SEEING)
def test_towers_in_bf16_are_as_good_as_transformers(family: str, eyes_of: EyesOf) -> None:
    sight_checks.towers_are_as_good_as_transformers(eyes_of(family), "cuda", torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("family", [*KINDS, "pixtral"])
def test_towers_are_as_good_in_other_types(family: str, dtype: torch.dtype, eyes_of: EyesOf) -> None:
    sight_checks.towers_are_as_good_as_transformers(eyes_of(family), "cuda", dtype)


@pytest.mark.parametrize("family", SEEING)
def test_towers_in_slices_give_the_same(family: str, eyes_of: EyesOf) -> None:
    sight_checks.towers_in_slices_give_the_same(eyes_of(family), "cuda", torch.bfloat16)


@pytest.mark.parametrize("family", SEEING)
def test_every_family_says_what_generate_says(family: str, eyes_of: EyesOf) -> None:
    sight_checks.every_way_says_what_generate_says(eyes_of(family), "cuda", attention="triton")


@pytest.mark.parametrize(
    ("family", "attention", "budget"),
    [
        *((family, attention, 7) for family in OF_THEIR_OWN for attention in ("triton", "sdpa")),
        *((family, "auto", 512) for family in KINDS),
    ],
)
def test_every_backend_says_so_in_chunks_and_at_once(family: str, attention: str, budget: int, eyes_of: EyesOf) -> None:
    options = {"attention": attention, "max_batched_tokens": budget}
    sight_checks.every_way_says_what_generate_says(eyes_of(family), "cuda", **options)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize(
    ("graphs", "overlap"), [(True, True), (True, False), ("lazy", True), (False, True), (False, False)]
)
def test_recording_and_overlap_change_no_token(family: str, graphs: bool | str, overlap: bool, eyes_of: EyesOf) -> None:
    options = {"attention": "triton", "graphs": graphs, "overlap": overlap}
    runner = sight_checks.every_way_says_what_generate_says(eyes_of(family), "cuda", **options)
    assert (runner.padded is not None and runner.padded.decoding.num_recorded > 0) == bool(graphs)


@pytest.mark.parametrize("family", SEEING)
def test_logits_in_bf16_are_as_good_as_transformers(family: str, eyes_of: EyesOf) -> None:
    sight_checks.logits_behind_images_are_as_good_as_transformers(
        eyes_of(family), "cuda", torch.bfloat16, attention="triton"
    )


@pytest.mark.skipif(not HAS_FP8, reason="needs a GPU with FP8 products")
@pytest.mark.parametrize(
    "options", [{"quantization": "fp8"}, {"kv_dtype": "fp8"}, {"quantization": "fp8", "kv_dtype": "fp8"}]
)
@pytest.mark.parametrize("family", KINDS)
def test_logits_in_fp8_are_near_those_in_bf16(family: str, options: dict[str, Any], eyes_of: EyesOf) -> None:
    runner = sight_checks.logits_behind_images_are_as_good_as_transformers(
        eyes_of(family), "cuda", torch.bfloat16, ratio=FP8_ROUNDING_RATIO, attention="triton", **options
    )
    assert bool(runner.loaded.fp8_linears) == ("quantization" in options)
    assert (runner.kv_dtype == torch.float8_e4m3fn) == ("kv_dtype" in options)


@pytest.mark.parametrize("family", SEEING)
def test_the_largest_image_is_counted(family: str, eyes_of: EyesOf) -> None:
    runner = sight_checks.runner_of(eyes_of(family), "cuda", torch.bfloat16)
    sight_checks.the_largest_image_is_counted(sight_checks.sight_of(runner))


@pytest.mark.parametrize("family", KINDS)
def test_images_leave_nothing_behind(family: str, eyes_of: EyesOf) -> None:
    def allocated() -> int:
        torch.cuda.synchronize()
        # A thread that encodes has one of its own, which the next takes over if that has ended by then.
        torch._C._cuda_clearCublasWorkspaces()
        return torch.cuda.memory_allocated()

    sight_checks.images_leave_nothing_behind(eyes_of(family), "cuda", allocated)
