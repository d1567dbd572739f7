"""The checks of `tests/gpu` for models that see, on the CPU: passed by what is right, failed by what is not."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.device.host_batch import HostBatch
from engine.execution import sight as sight_module
from engine.execution.graphs import DecodeGraphs
from engine.execution.image_cache import ImageCache
from engine.execution.sight import Rehearsed, Sight
from engine.execution.slices import Slices
from engine.models.image_encoder import ImageEncoder
from engine.models.vision_qwen import QwenEncoder
from engine.models.vision_windows import Group, Windows
from engine.scheduling.images import Placement, PromptImage
from tests.gpu import sight_checks
from tests.gpu.checks import FP8_ROUNDING_RATIO
from tests.vision_models import SEEING, Eyes

EyesOf = Callable[[str], Eyes]
TORCH: dict[str, Any] = {"attention": "reference", "fusion": False}
"""Not every CPU can pack linears in bf16."""


@pytest.fixture
def qwen(eyes_of: EyesOf) -> Eyes:
    return eyes_of("qwen2_5_vl")


def scaled_wrongly(patch: pytest.MonkeyPatch) -> None:
    """Pixels are a tenth brighter than the processor has them."""
    whole = ImageEncoder._scaled
    patch.setattr(ImageEncoder, "_scaled", lambda self, pixels: whole(self, pixels) * 1.1)


def one_token_further(patch: pytest.MonkeyPatch) -> None:
    """Each row of an image stands where the next one should."""
    whole = ImageEncoder.encode
    patch.setattr(ImageEncoder, "encode", lambda self, image: whole(self, image).roll(1, 0))


def windows_that_are_one(patch: pytest.MonkeyPatch) -> None:
    """Patches see those of all windows."""
    patch.setattr(Windows, "of", lambda _, bounds: [Group(1, int(bounds[-1]), None)])


def inverted(patch: pytest.MonkeyPatch) -> None:
    """What is light to the decoder should be dark."""
    whole = ImageEncoder.encode
    patch.setattr(ImageEncoder, "encode", lambda self, image: -whole(self, image))


@pytest.mark.parametrize("family", SEEING)
def test_towers(family: str, eyes_of: EyesOf) -> None:
    sight_checks.towers_are_as_good_as_transformers(eyes_of(family), "cpu", torch.bfloat16)


@pytest.mark.parametrize("fault", [scaled_wrongly, one_token_further, windows_that_are_one])
def test_towers_that_are_wrong(
    fault: Callable[[pytest.MonkeyPatch], None], qwen: Eyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    sight_checks.towers_are_as_good_as_transformers(qwen, "cpu", torch.float16)
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        sight_checks.towers_are_as_good_as_transformers(qwen, "cpu", torch.float16)


def test_slices(eyes_of: EyesOf, monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("qwen2_5_vl", "mllama"):
        sight_checks.towers_in_slices_give_the_same(eyes_of(family), "cpu", torch.bfloat16)
    whole = Slices._before

    def meddle(self: Slices, module: Any, arguments: Any) -> Any:
        whole(self, module, arguments)
        return (arguments[0] * 1.01, *arguments[1:]) if self._call is not None and arguments else None

    monkeypatch.setattr(Slices, "_before", meddle)
    with pytest.raises(AssertionError):
        sight_checks.towers_in_slices_give_the_same(eyes_of("qwen2_5_vl"), "cpu", torch.bfloat16)


@pytest.mark.parametrize("options", [{"graphs": True, "max_batched_tokens": 7}, {"attention": "sdpa", "overlap": True}])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "mllama"])
def test_tokens(family: str, options: dict[str, Any], eyes_of: EyesOf, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, decoded = DecodeGraphs.run, []

    def run(self: DecodeGraphs, host: HostBatch) -> torch.Tensor:
        decoded.append(len(host.query_lens))
        return whole(self, host)

    monkeypatch.setattr(DecodeGraphs, "run", run)
    sight_checks.every_way_says_what_generate_says(eyes_of(family), "cpu", **options)
    # One row is of text; what has images behind it is recorded too, what looks at images is not.
    assert (max(decoded, default=0) > (family == "qwen2_5_vl")) == ("graphs" in options)


def test_tokens_behind_images_that_stand_elsewhere(qwen: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        one_token_further(patch)
        with pytest.raises(AssertionError):
            sight_checks.every_way_says_what_generate_says(qwen, "cpu")
    whole = QwenEncoder.place

    def further(self: QwenEncoder, num_tokens: int, images: tuple[PromptImage, ...]) -> Placement | None:
        found = whole(self, num_tokens, images)
        return None if found is None else Placement(found.positions, found.delta + 3)

    monkeypatch.setattr(QwenEncoder, "place", further)
    with pytest.raises(AssertionError):  # only what is said after a prompt, in steps that a GPU records
        sight_checks.every_way_says_what_generate_says(qwen, "cpu", graphs=True)


@pytest.mark.parametrize(("family", "fault"), [("qwen2_5_vl", one_token_further), ("mllama", inverted)])
def test_logits(
    family: str, fault: Callable[[pytest.MonkeyPatch], None], eyes_of: EyesOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        sight_checks.logits_behind_images_are_as_good_as_transformers(eyes_of(family), "cpu", torch.bfloat16, **TORCH)

    check()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("family", ["qwen2_5_vl", "mllama"])
def test_logits_in_fp8(family: str, eyes_of: EyesOf) -> None:
    """Within their bound, and beyond that of bf16 itself."""
    fp8 = TORCH | {"quantization": "fp8", "kv_dtype": "fp8"}

    def check(ratio: float) -> None:
        sight_checks.logits_behind_images_are_as_good_as_transformers(
            eyes_of(family), "cpu", torch.bfloat16, ratio=ratio, **fp8
        )

    check(FP8_ROUNDING_RATIO)
    with pytest.raises(AssertionError):
        check(1.0)


def test_the_largest_image(qwen: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU whose memory is made up: 3 more bytes are held each time that encoding stops."""
    sight = sight_checks.sight_of(sight_checks.runner_of(qwen, "cpu", torch.float32))
    held = iter(range(0, 3000, 3))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: next(held))
    monkeypatch.setattr(sight_module, "peak_bytes", lambda step, _: step() or 1000)
    sight_checks.the_largest_image_is_counted(sight)
    for nothing in (Rehearsed(0, 0), Rehearsed(10, 10)):
        monkeypatch.setattr(Sight, "rehearse", lambda _, nothing=nothing: nothing)
        with pytest.raises(AssertionError):
            sight_checks.the_largest_image_is_counted(sight)


def tensors() -> int:
    """Bytes of all there are."""
    gc.collect()
    return sum(found.nbytes for found in gc.get_objects() if type(found) is torch.Tensor)


def test_memory(eyes_of: EyesOf, monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("qwen2_5_vl", "mllama"):
        sight_checks.images_leave_nothing_behind(eyes_of(family), "cpu", tensors)
    kept: list[torch.Tensor] = []
    whole = ImageCache.keep

    def hoard(self: ImageCache, image: PromptImage, found: torch.Tensor) -> None:
        kept.append(found)
        whole(self, image, found)

    monkeypatch.setattr(ImageCache, "keep", hoard)
    with pytest.raises(AssertionError):
        sight_checks.images_leave_nothing_behind(eyes_of("qwen2_5_vl"), "cpu", tensors)
