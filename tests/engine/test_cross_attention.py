"""Models whose tokens look at images (Mllama): who sees which image, and room for images that sequences look at."""

from typing import Any

import pytest

from engine.engine import Engine
from engine.messages import AddRequest
from engine.models.cross_attention import CrossAttention
from engine.models.fp8 import Fp8Linear
from engine.sampling_params import SamplingParams
from engine.scheduling.image_shelf import ImageShelf
from engine.scheduling.images import PromptImage, looks_of
from engine.scheduling.sequence import Sequence
from tests.engine.test_oracle import make_engine
from tests.engine.test_oracle_images import finish
from tests.vision_models import Eyes, build_seeing_model

TEXT = [7, 19, 23, 5, 101, 200, 14, 90, 33, 250, 66]


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Eyes:
    return Eyes("mllama", build_seeing_model("mllama", tmp_path_factory.mktemp("mllama")))


def greedy(**options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **options})


def image(start: int, name: bytes, tiles: int = 1) -> PromptImage:
    return PromptImage(start, 1, name, (1, tiles), ())


MASKS: dict[str, list[Any]] = {
    "text": [TEXT],
    "one image": [TEXT, (60, 60), TEXT],
    "two apart": [TEXT, (60, 60), TEXT, (30, 90, 1), TEXT],
    "two adjacent": [TEXT, (60, 60), (30, 90, 1), TEXT],
    "three, of which two adjacent, to the end": [(20, 20), TEXT, (60, 60), (30, 90, 1)],
}


@pytest.mark.parametrize("budget", [512, 5, 1])
def test_who_sees_what_is_as_in_transformers(eyes: Eyes, budget: int) -> None:
    engine = make_engine(eyes.directory, max_batched_tokens=max(budget, 5), max_num_seqs=5)
    engine._scheduler.max_batched_tokens = budget
    for request_id, parts in enumerate(MASKS.values()):
        eyes.add(engine, request_id, parts, greedy())
    outputs = finish(engine)
    for request_id, (name, parts) in enumerate(MASKS.items()):
        assert outputs[request_id, 0] == eyes.generate(parts, 8, eos_token_id=-1), name


def test_looks() -> None:
    images = (image(2, b"a"), image(5, b"b"), image(6, b"c"), image(9, b"d"))

    def seen(first: int, end: int) -> list[tuple[int, int, str]]:
        looks = looks_of(images, first, end, 100)
        return [(look.row, look.length, b"".join(i.digest for i in look.images).decode()) for look in looks]

    assert seen(0, 2) == []
    assert seen(0, 12) == [(102, 3, "a"), (105, 1, "b"), (106, 3, "bc"), (109, 3, "d")]
    assert seen(4, 6) == [(100, 1, "a"), (101, 1, "b")]
    assert seen(20, 21) == [(100, 1, "d")]


def test_penalties_beside_a_token_without_a_logit(eyes: Eyes) -> None:
    """The placeholder's id is that of the next row's first token where counts lie row after row."""
    parts = [TEXT, (60, 60), TEXT[:3]]
    alone = make_engine(eyes.directory)
    eyes.add(alone, 0, [TEXT], greedy(frequency_penalty=1.5, repetition_penalty=1.3))
    expected = finish(alone)[0, 0]
    engine = make_engine(eyes.directory)
    for request_id in range(3):
        eyes.add(engine, request_id, parts, greedy(repetition_penalty=1.3, frequency_penalty=0.5))
    eyes.add(engine, 3, [TEXT], greedy(frequency_penalty=1.5, repetition_penalty=1.3))
    outputs = finish(engine)
    assert outputs[3, 0] == expected
    assert outputs[0, 0] == outputs[1, 0] == outputs[2, 0] != eyes.generate(parts, 8, eos_token_id=-1)


def test_the_placeholder_stands_only_for_images(eyes: Eyes) -> None:
    engine = make_engine(eyes.directory)

    def refusal() -> str:
        (output,) = [output for output in engine.step() if output.finish_reason]
        return str(output.error)

    engine.add(AddRequest(0, [*TEXT, eyes.info.token_id], greedy()))
    assert "outside the vocabulary" in refusal()
    tokens, images, spans = eyes.prompt([TEXT, (60, 60), TEXT])
    engine.add_image(images[0])
    engine.add(AddRequest(1, [*tokens, eyes.info.token_id], greedy(), images=spans))
    assert "outside the vocabulary" in refusal()


def tight(eyes: Eyes, capacity: int) -> Engine:
    engine = make_engine(eyes.directory)
    shelf = engine._scheduler.shelf
    assert shelf is not None
    shelf.capacity = capacity
    return engine


def test_sequences_wait_for_room_for_their_images(eyes: Eyes) -> None:
    engine = tight(eyes, 5)
    conversations = [[TEXT, (60, 60, seed), TEXT] for seed in range(3)] * 2
    for request_id, parts in enumerate(conversations):
        eyes.add(engine, request_id, parts, greedy())
    most = 0
    outputs: dict[int, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            outputs.setdefault(output.request_id, []).extend(output.token_ids)
        shelf = engine._scheduler.shelf
        assert shelf is not None
        shelf.check(engine._scheduler.running)
        most = max(most, len(engine._scheduler.running))
        cache = engine._runner.sight.images  # type: ignore[attr-defined]
        assert len(cache._kept) <= 2
    assert most < 4
    assert [outputs[n] for n in range(6)] == [eyes.generate(parts, 8, eos_token_id=-1) for parts in conversations]


def test_more_images_than_there_is_room_for_are_refused(eyes: Eyes) -> None:
    engine = tight(eyes, 5)
    eyes.add(engine, 0, [(60, 60), TEXT, (60, 60, 1), TEXT], greedy())
    (output,) = [output for output in engine.step() if output.finish_reason]
    assert output.error == "the images of this request take 8 tiles; at most 5 can be seen at once"
    eyes.add(engine, 1, [(60, 60), TEXT, (60, 60), TEXT], greedy())  # one image, twice
    assert finish(engine)[1, 0] == eyes.generate([(60, 60), TEXT, (60, 60), TEXT], 8, eos_token_id=-1)


def sequence_of(*images: PromptImage) -> Sequence:
    return Sequence(
        request_id=0, prompt_token_ids=[1] * 9, params=SamplingParams(max_tokens=1), seed=0, max_len=10, images=images
    )


def test_the_shelf_gives_up_what_was_not_used_for_longest() -> None:
    shelf = ImageShelf(4, lambda grid: grid[0] * grid[1])
    a, b, c = (sequence_of(image(1, name, 2)) for name in (b"a", b"b", b"c"))
    assert shelf.take(a) and shelf.take(b) and not shelf.take(c)
    shelf.give_back(b)
    shelf.give_back(a)
    assert shelf.take(b)  # used again: now a is the oldest
    shelf.give_back(b)
    assert shelf.take(c) and b"a" not in shelf and b"b" in shelf
    shelf.check([c])
    both = sequence_of(image(1, b"b", 2), image(3, b"c", 2))
    assert shelf.take(both) and shelf.num_owned == 4
    assert not shelf.take(a)
    shelf.check([c, both])
    shelf.give_back(both)
    shelf.give_back(c)
    assert shelf.num_owned == 0 and shelf.num_kept == 4


def test_fp8_leaves_cross_attention_as_it_is(eyes: Eyes) -> None:
    engine = make_engine(eyes.directory, quantization="fp8")
    model = engine._runner.model  # type: ignore[attr-defined]
    layers = [module for module in model.modules() if isinstance(module, CrossAttention)]
    assert len(layers) == 2
    assert any(isinstance(module, Fp8Linear) for module in model.modules())
    assert not any(isinstance(module, Fp8Linear) for layer in layers for module in layer.modules())
    eyes.add(engine, 0, [TEXT, (60, 60), TEXT], greedy())
    eyes.add(engine, 1, [TEXT, (60, 60, 1), TEXT], greedy())
    outputs = finish(engine)
    assert outputs[0, 0] != outputs[1, 0]
