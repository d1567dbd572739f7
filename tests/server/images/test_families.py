"""Every family's images through a real worker process: tokens and pixels are those of transformers' processors."""

import asyncio
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from engine.anyres import anyres_tokens
from engine.models.image_encoder import tensor_of
from engine.models.vision import family_of
from server.images.messages import PreparedImage, PrepareImage
from server.images.pool import ImageError, ImagePool
from server.protocol.errors import ApiError
from tests.vision_models import SEEING, Eyes, build_seeing_model, noise

SIZES = [(60, 90), (28, 28), (30, 150), (200, 90), (1, 1), (400, 400)]


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def through_workers(eyes: Eyes, images: list[Image.Image]) -> tuple[list[PreparedImage], list[PreparedImage]]:
    """As they are, and with little detail."""

    async def run() -> tuple[list[PreparedImage], list[PreparedImage]]:
        pool = ImagePool()
        question = PrepareImage(
            str(eyes.directory), eyes.info.family, eyes.info.token_id, "auto", b"", 1 << 24, 1 << 12, True
        )
        low = msgspec.structs.replace(question, detail="low")
        contents = [png(image) for image in images]
        try:
            whole = [await pool.prepare(question, content) for content in contents]
            return whole, [await pool.prepare(low, content) for content in contents]
        finally:
            await pool.close()

    return asyncio.run(run())


def scaled(eyes: Eyes, prepared: PreparedImage) -> torch.Tensor:
    """As the engine has them."""
    config: Any = eyes.config
    kind = family_of(config)
    assert kind is not None
    encoder = kind(SimpleNamespace(model=SimpleNamespace(device="cpu"), hf_config=config, directory=eyes.directory))  # type: ignore[arg-type]
    (array,) = prepared.arrays
    pixels = tensor_of(array, torch.device("cpu"))
    return encoder._scaled(pixels.squeeze(2) if pixels.ndim == 5 else pixels)


@pytest.mark.parametrize("family", SEEING)
def test_tokens_and_pixels_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    eyes = Eyes(family, build_seeing_model(family, tmp_path))
    images = [noise(*size) for size in SIZES]
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    whole, low = through_workers(eyes, images)
    for image, prepared in zip(images, whole, strict=True):
        if family != "llava_onevision":  # whose text is that of images that are not alone
            text = eyes.seeing.text(eyes.processor.pil, image).strip() if family == "gemma3_vision" else None
            text = text or eyes.seeing.text(eyes.processor.pil, image)
            assert prepared.token_ids == tokenizer.encode(text, add_special_tokens=False).ids, image.size
        wanted = eyes.seeing.inputs(eyes.processor.pil, prepared.token_ids, [image])["pixel_values"]
        found = scaled(eyes, prepared)
        if "qwen" in family:
            patch = found.shape[-1]
            wanted = wanted.view(len(found), 3, 2, patch, patch)
            assert torch.equal(wanted[:, :, 0], found) and torch.equal(wanted[:, :, 1], found)
        else:
            assert torch.equal(wanted.reshape(-1, *found.shape[1:])[: len(found)], found), image.size
    assert all(len(a.token_ids) >= len(b.token_ids) > 0 for a, b in zip(whole, low, strict=True))
    if family in ("mllama", "idefics3", "smolvlm", "internvl", "llava_onevision"):
        tiles = [[array.shape[0] for array in prepared.arrays] for prepared in low]
        assert tiles == [[1]] * len(images), "one tile each"


async def asked(directory: Path, eyes: Eyes, content: bytes, times: int = 1) -> tuple[list[Exception], int]:
    """What a pool says of an image again and again, and how many processes that took."""
    pool, found = ImagePool(), []
    pids: set[int] = set()
    question = PrepareImage(str(directory), eyes.info.family, eyes.info.token_id, "auto", b"", 1 << 24, 1 << 14)
    try:
        for _ in range(times):
            try:
                await pool.prepare(question, content)
            except (ApiError, ImageError) as error:
                found.append(error)
            pids |= set(pool.pids)
    finally:
        await pool.close()
    return found, len(pids)


@pytest.mark.parametrize("family", ["pixtral", "mistral3"])
def test_an_image_too_thin_to_be_made_smaller_is_refused(family: str, tmp_path: Path) -> None:
    eyes = Eyes(family, build_seeing_model(family, tmp_path))
    for size, said in (((1, 113), "got 113 x 1"), ((226, 2), "got 2 x 226")):
        ((error,), _) = asyncio.run(asked(tmp_path, eyes, png(noise(*size))))
        assert isinstance(error, ImageError) and said in str(error) and "at most 112 times" in str(error)
    assert eyes.cut(112, 1).token_ids and eyes.cut(2, 224).token_ids


def test_a_model_whose_processor_is_broken_is_no_fault_of_an_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The process goes on; a client is not told which files are wrong."""
    eyes = Eyes("qwen2_5_vl", build_seeing_model("qwen2_5_vl", tmp_path))
    (tmp_path / "preprocessor_config.json").write_text('{"size": 7, "patch_size": "x"}')
    errors, processes = asyncio.run(asked(tmp_path, eyes, png(noise(60, 90)), times=2))
    assert [error.status for error in errors if isinstance(error, ApiError)] == [500, 500] and processes == 1
    assert "images cannot be cut as" in caplog.text and not any(str(tmp_path) in str(error) for error in errors)


@settings(max_examples=300)
@given(height=st.integers(1, 4000), width=st.integers(1, 4000), max_tiles=st.sampled_from([1, 4, 9]))
def test_tokens_of_any_shape_are_counted_as_by_transformers(height: int, width: int, max_tiles: int) -> None:
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor as Theirs

    canvases = [[384 * a, 384 * b] for a in range(1, 7) for b in range(1, 7)]
    settings = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=canvases),
        num_image_tokens=27**2,
        vision_aspect_ratio=f"anyres_max_{max_tiles}",
    )
    settings._get_unpadded_features = lambda *sizes: Theirs._get_unpadded_features(settings, *sizes)
    wanted = Theirs._get_number_of_features(settings, height, width, 384, 384)
    found = anyres_tokens(height, width, tile=384, side=27, canvases=canvases, max_tiles=max_tiles)
    assert found == wanted
