"""Images in the engine against transformers' `generate` on the same weights: greedy output, token for token, in fp32.

Images of different sizes stand in prompts of different length, beside text, cut into chunks, hit in the prefix cache,
preempted in the middle, and encoded anew when their embeddings are gone.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from engine.engine import Engine
from engine.messages import AddImage, AddRequest, ImageArray, ImageSpan
from engine.sampling_params import SamplingParams
from tests.engine.test_oracle import make_engine
from tests.tiny_models import VOCAB_SIZE, auto_class

IMAGE, START, END = 310, 312, 313
TEXT = [7, 19, 23, 5, 101, 200, 14, 90, 33, 250, 66]
PROCESSOR = Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64})


@dataclass(frozen=True)
class Picture:
    """An image as the engine gets it, and as transformers does."""

    add: AddImage
    values: torch.Tensor
    grid: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.grid[1] * self.grid[2] // 4


@lru_cache
def picture(height: int, width: int, seed: int = 0) -> Picture:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    raw = PROCESSOR(image, do_rescale=False, do_normalize=False, return_tensors="np")
    patches = np.asarray(raw["pixel_values"]).reshape(-1, 3, 2, 14, 14)
    assert (patches[:, :, 0] == patches[:, :, 1]).all()
    one = np.ascontiguousarray(patches[:, :, :1].round().astype(np.uint8))
    assert (one == patches[:, :, :1]).all()
    grid = tuple(int(side) for side in raw["image_grid_thw"][0])
    digest = hashlib.sha256(pixels.tobytes() + bytes(grid)).digest()
    array = ImageArray("pixel_values", list(one.shape), "uint8", one.tobytes())
    finished = PROCESSOR(image, return_tensors="pt")["pixel_values"]
    return Picture(AddImage(digest, list(grid), [array]), finished, grid)


Part = int | Picture


def prompt_of(*parts: Part | list[int]) -> tuple[list[int], list[Picture], list[ImageSpan]]:
    tokens: list[int] = []
    pictures: list[Picture] = []
    spans: list[ImageSpan] = []
    for part in parts:
        if isinstance(part, Picture):
            spans.append(ImageSpan(len(tokens) + 1, part.length, part.add.digest))
            pictures.append(part)
            tokens += [START, *[IMAGE] * part.length, END]
        else:
            tokens += part if isinstance(part, list) else [part]
    return tokens, pictures, spans


@lru_cache(maxsize=2)
def oracle(directory: Path) -> PreTrainedModel:
    model_class = auto_class(AutoConfig.from_pretrained(directory))
    return model_class.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def generate(directory: Path, parts: list[Part | list[int]], max_tokens: int) -> list[int]:
    tokens, pictures, _ = prompt_of(*parts)
    model = oracle(directory)
    ids = torch.tensor([tokens])
    options = {}
    if pictures:
        options = {
            "pixel_values": torch.cat([found.values for found in pictures]),
            "image_grid_thw": torch.tensor([found.grid for found in pictures]),
            "mm_token_type_ids": (ids == IMAGE).int(),
        }
    with torch.inference_mode():
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, **options
        )
    return output[0, len(tokens) :].tolist()


def add(engine: Engine, request_id: int, parts: list[Part | list[int]], max_tokens: int = 8, **options: object) -> None:
    tokens, pictures, spans = prompt_of(*parts)
    for found in pictures:
        engine.add_image(found.add)
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    engine.add(AddRequest(request_id, tokens, params, images=spans, **options))  # type: ignore[arg-type]


def finish(engine: Engine) -> dict[tuple[int, int], list[int]]:
    outputs: dict[tuple[int, int], list[int]] = {}
    for _ in range(3000):
        for output in engine.step():
            assert output.error is None, output.error
            outputs.setdefault((output.request_id, output.index), []).extend(output.token_ids)
        if not engine.has_work:
            engine.step()
            return outputs
    raise AssertionError("the engine did not become idle")


CONVERSATIONS: dict[str, list[Part | list[int]]] = {
    "one image": [TEXT[:3], picture(56, 84), TEXT],
    "image first": [picture(84, 56), TEXT],
    "three sizes": [TEXT[:2], picture(28, 28), 9, picture(140, 56, 1), TEXT[:5], picture(56, 168, 2), TEXT],
    "two turns": [TEXT[:3], picture(56, 84), TEXT, 8, 9, 10, picture(84, 84, 3), TEXT[:4]],
    "adjacent": [picture(56, 56, 4), picture(56, 56, 5), 3],
    "text": [TEXT + TEXT],
}


@pytest.fixture
def directory(tiny_model_dir: Callable[[str], Path]) -> Path:
    return tiny_model_dir("qwen2_5_vl")


@pytest.mark.parametrize("budget", [512, 7, 4])
def test_all_at_once_and_in_chunks_they_are_answered_as_by_transformers(directory: Path, budget: int) -> None:
    engine = make_engine(directory, max_batched_tokens=budget)
    for request_id, parts in enumerate(CONVERSATIONS.values()):
        add(engine, request_id, parts)
    outputs = finish(engine)
    for request_id, (name, parts) in enumerate(CONVERSATIONS.items()):
        assert outputs[request_id, 0] == generate(directory, parts, 8), name


def test_images_matter_and_equal_placeholders_are_not_equal_blocks(directory: Path) -> None:
    engine = make_engine(directory)
    variants = [
        [TEXT, picture(56, 84, 0), TEXT],
        [TEXT, picture(56, 84, 6), TEXT],  # same text, other image
        [TEXT, picture(84, 56, 0), TEXT],  # as many tokens, another shape
        [TEXT, picture(56, 84, 0), TEXT[::-1]],  # same image, other question
    ]
    answers = []
    for request_id, parts in enumerate([*variants, *variants]):
        add(engine, request_id, parts)
        answers.append(finish(engine)[request_id, 0])
    assert answers[:4] == [generate(directory, parts, 8) for parts in variants]
    assert answers[4:] == answers[:4] and len({tuple(answer) for answer in answers}) >= 3


def test_the_prefix_cache_is_shared_exactly_where_it_may_be(directory: Path) -> None:
    engine = make_engine(directory, block_size=4)

    def cached(request_id: int, parts: list[Part | list[int]], salt: bytes = b"") -> int:
        before = engine.stats().cached_tokens
        add(engine, request_id, parts, salt=salt)
        finish(engine)
        return engine.stats().cached_tokens - before

    head, image = TEXT[:8], picture(56, 168)
    parts: list[Part | list[int]] = [head, image, TEXT]
    whole = len(prompt_of(*parts)[0])
    assert cached(0, parts) == 0
    assert cached(1, parts) == (whole - 1) // 4 * 4
    assert cached(2, [head, picture(56, 168, 7), TEXT]) == 8  # up to where the images begin
    assert cached(3, [head, picture(168, 56), TEXT]) == 8
    assert cached(4, [head, image, 1, 2, 3]) == (8 + 1 + image.length + 1) // 4 * 4
    assert cached(5, parts, salt=b"other") == 0
    # The very same image further on in the text is another block, but not another encoding.
    encoded = engine._runner.sight.images.num_encoded  # type: ignore[attr-defined]
    assert cached(6, [head, 5, image, TEXT]) == 8
    assert engine._runner.sight.images.num_encoded == encoded  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"graphs": True, "attention": "reference"}], ids=str)
def test_preempted_in_the_middle_of_an_image_and_several_choices(directory: Path, options: dict[str, object]) -> None:
    parts = CONVERSATIONS["three sizes"]
    length = len(prompt_of(*parts)[0])
    blocks = (length + 24) // 4 * 3 // 2
    engine = make_engine(directory, num_blocks=blocks, context=length + 30, max_batched_tokens=6, **options)
    for request_id in range(3):
        add(engine, request_id, parts, max_tokens=24, n=1 + (request_id == 2), salt=bytes([request_id]))
    outputs = finish(engine)
    assert engine.stats().preemptions > 0
    expected = generate(directory, parts, 24)
    assert list(outputs.values()) == [expected] * 4


def test_embeddings_that_are_gone_are_made_again(directory: Path) -> None:
    engine = make_engine(directory, max_batched_tokens=5)
    cache = engine._runner.sight.images  # type: ignore[attr-defined]
    cache._budget = picture(56, 84).length * 64 * 4  # one image at a time
    names = ["three sizes", "two turns", "adjacent"]
    for request_id, name in enumerate(names):
        add(engine, request_id, CONVERSATIONS[name])
    outputs = finish(engine)
    for request_id, name in enumerate(names):
        assert outputs[request_id, 0] == generate(directory, CONVERSATIONS[name], 8), name
    assert cache.num_encoded > 6 and cache.num_bytes <= cache._budget


def refusal(engine: Engine) -> str:
    (output,) = [output for output in engine.step() if output.finish_reason]
    assert output.finish_reason == "error"
    return str(output.error)


def test_images_and_spans_that_do_not_agree_are_refused_and_the_neighbour_goes_on(directory: Path) -> None:
    engine = make_engine(directory)
    found = picture(56, 84)
    params = SamplingParams(max_tokens=4, temperature=0.0)
    tokens, _, (span,) = prompt_of(TEXT, found, TEXT)
    add(engine, 99, [TEXT], max_tokens=100)

    def ask(request_id: int, spans: list[ImageSpan], *images: AddImage, **changes: object) -> str:
        for image in images:
            engine.add_image(image)
        engine.add(AddRequest(request_id, tokens, SamplingParams(max_tokens=4, **changes), images=spans))  # type: ignore[arg-type]
        return refusal(engine)

    assert "has not arrived" in ask(0, [span])
    assert "overlap, or lie outside" in ask(1, [ImageSpan(len(tokens) - 1, span.length, span.digest)], found.add)
    assert "overlap" in ask(2, [span, span], found.add)
    assert "has not the tokens" in ask(3, [ImageSpan(span.start, span.length - 1, span.digest)], found.add)
    for grid in ([1, 4, 7], [2, 4, 6], [1, 0, 6], [4, 6], [1, -4, -6]):
        assert "has not the tokens" in ask(4, [span], AddImage(span.digest, grid, found.add.arrays)), grid
    short = ImageArray("pixel_values", found.add.arrays[0].shape, "uint8", b"too short")
    assert "incomplete" in ask(5, [span], AddImage(span.digest, list(found.grid), [short]))
    assert "not computed" in ask(6, [span], found.add, prompt_logprobs=0)
    # What came for a request that was refused is not there for the next.
    assert "has not arrived" in ask(7, [span])
    odd = ImageArray("pixel_values", [24, 3, 1, 14, 7, 2], "uint8", found.add.arrays[0].data)
    assert "could not be encoded" in ask(8, [span], AddImage(span.digest, list(found.grid), [odd]))
    engine.add_image(found.add)
    engine.add(AddRequest(9, tokens, params, images=[span]))
    outputs = finish(engine)
    assert outputs[9, 0] == generate(directory, [TEXT, found, TEXT], 4)
    assert len(outputs[99, 0]) > 10


def test_placeholders_in_text_claim_no_image(directory: Path) -> None:
    engine = make_engine(directory)
    text = [TEXT, START, IMAGE, IMAGE, IMAGE, END, TEXT]
    add(engine, 0, text)
    add(engine, 1, [*text, picture(56, 84), TEXT])
    outputs = finish(engine)
    assert set(outputs) == {(0, 0), (1, 0)} and VOCAB_SIZE > IMAGE


def test_a_model_without_eyes_refuses_images(tiny_model_dir: Callable[[str], Path]) -> None:
    engine = make_engine(tiny_model_dir("llama"))
    found = picture(56, 84)
    tokens, _, spans = prompt_of(found, TEXT)
    engine.add_image(found.add)
    engine.add(AddRequest(0, tokens, SamplingParams(max_tokens=1), images=spans))
    assert refusal(engine) == "this model takes no images"
