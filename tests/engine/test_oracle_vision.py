"""Every family that sees against transformers' `generate`: greedy output, token for token, in fp32.

Images go the way of the server, cut by the worker's processors into whole numbers; transformers gets them in floats.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.engine import Engine
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from engine.scheduling.images import ImageInbox
from tests.engine.test_oracle import make_engine
from tests.engine.test_oracle_images import finish
from tests.vision_models import SEEING, Eyes

TEXT = [7, 19, 23, 5, 101, 200, 14, 90, 33, 250, 66]
CONVERSATIONS: dict[str, list[Any]] = {
    "one image": [TEXT[:3], (56, 84), TEXT],
    "image first": [(84, 56), TEXT],
    "three sizes": [TEXT[:2], (28, 28), 9, (140, 56, 1), TEXT[:5], (30, 150, 2), TEXT],
    "two turns": [TEXT[:3], (56, 84), TEXT, 8, 9, 10, (84, 84, 3), TEXT[:4]],
    "text": [TEXT + TEXT],
    "side by side": [TEXT[:4], (56, 56, 4), 6, (150, 30, 5), 3, 4],
}


def greedy(max_tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **options)


@pytest.fixture(params=SEEING)
def eyes(request: pytest.FixtureRequest, eyes_of: Callable[[str], Eyes]) -> Eyes:
    return eyes_of(request.param)


def answers(eyes: Eyes, engine: Engine, conversations: list[list[Any]], max_tokens: int = 8) -> list[list[int]]:
    for request_id, parts in enumerate(conversations):
        eyes.add(engine, request_id, parts, greedy(max_tokens))
    outputs = finish(engine)
    return [outputs[request_id, 0] for request_id in range(len(conversations))]


@pytest.mark.parametrize(
    ("budget", "attention"), [(512, "cpu"), (7, "cpu"), (4, "cpu"), (7, "reference"), (64, "sdpa")]
)
def test_all_at_once_and_in_chunks(eyes: Eyes, budget: int, attention: str) -> None:
    engine = make_engine(eyes.directory, max_batched_tokens=budget, attention=attention)
    found = answers(eyes, engine, list(CONVERSATIONS.values()))
    for (name, parts), answer in zip(CONVERSATIONS.items(), found, strict=True):
        assert answer == eyes.generate(parts, 8), name


def test_images_matter_and_prefixes_are_shared_where_they_may_be(eyes: Eyes) -> None:
    engine = make_engine(eyes.directory, block_size=4)
    variants = [
        [TEXT, (56, 84), TEXT],
        [TEXT, (56, 84, 6), TEXT],  # same text, other image
        [TEXT, (84, 56), TEXT],
        [TEXT, (56, 84), TEXT[::-1]],  # same image, other question
    ]
    found, cached = [], []
    for request_id, parts in enumerate([*variants, *variants]):
        before = engine.stats().cached_tokens
        eyes.add(engine, request_id, parts, greedy(8))
        found.append(finish(engine)[request_id, 0])
        cached.append(engine.stats().cached_tokens - before)
    assert found[:4] == [eyes.generate(parts, 8) for parts in variants]
    assert found[4:] == found[:4] and len({tuple(answer) for answer in found}) >= 3
    before = engine.stats().cached_tokens
    eyes.add(engine, 99, variants[0], greedy(8), salt=b"other")
    assert finish(engine)[99, 0] == found[0] and engine.stats().cached_tokens == before
    assert cached[0] == 0 and cached[1] <= len(TEXT) + 4 and min(cached[4:]) > len(TEXT)


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"graphs": True, "attention": "reference"}], ids=str)
def test_preempted_in_the_middle_and_several_choices(eyes: Eyes, options: dict[str, Any]) -> None:
    parts = CONVERSATIONS["three sizes"]
    length = len(eyes.prompt(parts)[0])
    # Room for two prompts, but not for what both say.
    blocks = -(-length // 4) * 2 + 6
    engine = make_engine(eyes.directory, num_blocks=blocks, context=length + 30, max_batched_tokens=6, **options)
    for request_id in range(3):
        eyes.add(
            engine, request_id, parts, greedy(24, ignore_eos=True), n=1 + (request_id == 2), salt=bytes([request_id])
        )
    outputs = finish(engine)
    assert engine.stats().preemptions > 0
    assert list(outputs.values()) == [eyes.generate(parts, 24, eos_token_id=-1)] * 4


def test_fp8_leaves_towers_as_they_are(eyes: Eyes) -> None:
    engines = [make_engine(eyes.directory, quantization=quantization) for quantization in ("none", "fp8")]
    tokens, images, spans = eyes.prompt([(56, 84)])
    inbox = ImageInbox()
    inbox.add(images[0])
    (image,) = inbox.claim(AddRequest(0, tokens, greedy(1), images=spans))
    encoders = [engine._runner.sight.encoder for engine in engines]  # type: ignore[attr-defined]
    plain, quantised = (encoder.encode(image) for encoder in encoders)
    assert torch.equal(plain, quantised)
    assert engines[1]._runner.loaded.fp8_linears  # type: ignore[attr-defined]
