"""Images are encoded in slices beside steps of others: the same numbers, and nobody waits for a whole tower."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import onlookers
from engine.engine import Engine
from engine.execution import slices as slices_module
from engine.execution.image_cache import ImageCache
from engine.execution.slices import SlicedCall, Slices
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from engine.scheduling.images import ImageInbox, PromptImage
from engine.scheduling.pacing import PrefillPacer
from tests.engine.test_oracle import make_engine
from tests.engine.test_oracle_images import finish
from tests.engine.test_oracle_vision import CONVERSATIONS, TEXT, greedy
from tests.vision_models import SEEING, Eyes, build_seeing_model


@pytest.fixture
def tiny_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step for each operation of a tower."""
    monkeypatch.setattr(onlookers, "SHORTEST_SLICE", 1e-9)
    monkeypatch.setattr(onlookers, "LONGEST_SLICE", 1e-9)
    monkeypatch.setattr(PrefillPacer, "decode_seconds", 0.0)


@pytest.fixture(scope="module", params=SEEING)
def eyes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Eyes:
    return Eyes(request.param, build_seeing_model(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Eyes]:
    directory: Path = tmp_path_factory.mktemp("qwen")
    yield Eyes("qwen2_5_vl", build_seeing_model("qwen2_5_vl", directory))


def images_of(eyes: Eyes, *parts: Any) -> tuple[PromptImage, ...]:
    tokens, images, spans = eyes.prompt(parts)
    inbox = ImageInbox()
    for image in images:
        inbox.add(image)
    return inbox.claim(AddRequest(0, tokens, greedy(1), images=spans))


@pytest.mark.usefixtures("tiny_slices")
def test_answers_are_those_of_transformers_whatever_comes_between(eyes: Eyes) -> None:
    engine = make_engine(eyes.directory, max_batched_tokens=16)
    for request_id, parts in enumerate(CONVERSATIONS.values()):
        eyes.add(engine, request_id, parts, greedy(8))
    outputs = finish(engine)
    for request_id, (name, parts) in enumerate(CONVERSATIONS.items()):
        assert outputs[request_id, 0] == eyes.generate(parts, 8), name
    assert engine._runner.sight._slices is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize(("device", "least"), [("cpu", 10), ("cuda", 2)])
def test_what_is_computed_in_slices_is_the_same_to_the_bit(
    eyes: Eyes, device: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By operations, as on a CPU, and by layers, as on a GPU, which is waited for before the clock is read."""
    sight: Any = make_engine(eyes.directory)._runner.sight  # type: ignore[attr-defined]
    (image,) = images_of(eyes, TEXT, (56, 84))
    whole = sight.images.make(image)
    waited: list[torch.device] = []
    monkeypatch.setattr(slices_module, "synchronize", waited.append)
    with monkeypatch.context() as patched:
        patched.setattr(sight.encoder, "device", torch.device(device))
        parts = sight._parts_of_tower()
    slices, number, found = Slices(parts, torch.device("cpu")), 0, None
    while found is None:
        found = slices.go_on(b"", lambda: sight.images.make(image), 0.0)
        number += 1
    assert torch.equal(whole, found) and number > least
    assert len(waited) == 2 * number - 1  # where a slice begins, and where it stops


def test_no_step_of_text_is_hooked(eyes: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(eyes.directory)
    runner: Any = engine._runner
    monkeypatch.setattr(runner.sight.encoder, "device", torch.device("cuda"))
    parts = set(runner.sight._parts_of_tower())
    assert parts and not parts & set(runner.model.get_decoder().modules())


def outputs_of(engine: Engine, steps: int) -> dict[int, int]:
    """Tokens by request in so many steps."""
    counts: dict[int, int] = {}
    for _ in range(steps):
        for output in engine.step():
            assert output.error is None
            counts[output.request_id] = counts.get(output.request_id, 0) + len(output.token_ids)
    return counts


@pytest.mark.usefixtures("tiny_slices")
def test_others_go_on_at_every_step(qwen: Eyes) -> None:
    engine = make_engine(qwen.directory)
    qwen.add(engine, 0, [TEXT], greedy(200, ignore_eos=True))
    outputs_of(engine, 2)
    for request_id in range(1, 4):
        qwen.add(engine, request_id, [TEXT, (56, 84, request_id), TEXT], greedy(4))
    steps, seen = 0, 0
    while engine._runner.sight.images.num_encoded < 3 or steps < 30:  # type: ignore[attr-defined]
        counts = outputs_of(engine, 1)
        assert counts.pop(0) == 1
        seen += sum(counts.values())
        steps += 1
    assert steps > 30
    assert seen + sum(len(tokens) for key, tokens in finish(engine).items() if key[0]) == 12


@pytest.mark.usefixtures("tiny_slices")
def test_one_that_leaves_while_its_image_is_encoded_leaves_nothing(qwen: Eyes) -> None:
    engine = make_engine(qwen.directory)
    qwen.add(engine, 0, [TEXT, (56, 84), TEXT], greedy(4))
    outputs_of(engine, 5)
    engine.abort([0])
    qwen.add(engine, 1, [TEXT, (84, 56, 1), TEXT], greedy(4))
    qwen.add(engine, 2, [TEXT, (56, 84), TEXT], greedy(4))
    outputs = finish(engine)
    assert outputs[1, 0] == qwen.generate([TEXT, (84, 56, 1), TEXT], 4)
    assert outputs[2, 0] == qwen.generate([TEXT, (56, 84), TEXT], 4)


@pytest.mark.usefixtures("tiny_slices")
def test_a_tower_that_fails_in_the_middle_fails_one_request(qwen: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(qwen.directory)
    merger = engine._runner.model.model.visual.merger  # type: ignore[attr-defined]
    forward = merger.forward
    monkeypatch.setattr(merger, "forward", lambda *_: 1 / 0)
    qwen.add(engine, 0, [TEXT, (56, 84), TEXT], greedy(4))
    qwen.add(engine, 1, [TEXT], greedy(20, ignore_eos=True))
    errors: list[str | None] = []
    while engine.has_work:
        errors += [output.error for output in engine.step() if output.finish_reason]
    assert errors == ["an image of this request could not be encoded", None]
    monkeypatch.setattr(merger, "forward", forward)
    qwen.add(engine, 2, [TEXT, (56, 84), TEXT], greedy(4))
    assert finish(engine)[2, 0] == qwen.generate([TEXT, (56, 84), TEXT], 4)


def test_a_tower_that_fails_fails_nobody_who_waits(qwen: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(qwen.directory, max_num_seqs=1)
    monkeypatch.setattr(ImageCache, "make", lambda *_: 1 / 0)
    qwen.add(engine, 0, [TEXT, (56, 84), TEXT], greedy(4))
    qwen.add(engine, 1, [TEXT], greedy(4))
    found = {0: "", 1: ""}
    while engine.has_work:
        found |= {output.request_id: output.error or "" for output in engine.step()}
    assert found == {0: "an image of this request could not be encoded", 1: ""}


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_no_step_waits_for_a_tower_however_little_is_kept(
    qwen: Eyes, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    engine = make_engine(qwen.directory, max_batched_tokens=16)
    images: Any = engine._runner.sight.images  # type: ignore[attr-defined]
    monkeypatch.setattr(images, "_budget", kept * 6 * 64 * 4)
    monkeypatch.setattr(images, "embeddings", lambda *_: 1 / 0)
    parts = [[TEXT[:number], (56, 84, number), TEXT[:number], (56, 84, 2), 9] for number in range(1, 4)]
    for request_id, one in enumerate(parts):
        qwen.add(engine, request_id, one, greedy(4))
    outputs = finish(engine)
    assert [outputs[request_id, 0] for request_id in range(3)] == [qwen.generate(one, 4) for one in parts]


@pytest.mark.usefixtures("tiny_slices")
def test_nothing_is_kept_for_those_who_have_left(qwen: Eyes) -> None:
    engine = make_engine(qwen.directory)
    sight: Any = engine._runner.sight  # type: ignore[attr-defined]
    sight.images._budget = 0
    for request_id in range(3):
        qwen.add(engine, request_id, [TEXT, (56, 84, request_id), 8, (84, 84, request_id), TEXT], greedy(4))
        encoded = sight.images.num_encoded
        while sight.images.num_encoded < encoded + 2:  # the first is done
            engine.step()
        engine.abort([request_id])
        assert len(sight._held) == 1
    assert sight._slices._call is not None
    engine.step()
    assert not sight._held and sight._slices._call is None


def test_what_is_abandoned_ends() -> None:
    linear = torch.nn.Linear(2, 2)
    slices = Slices([linear], torch.device("cpu"))

    def compute() -> torch.Tensor:
        for _ in range(3):
            linear(torch.zeros(1, 2))
        return torch.ones(1)

    assert slices.go_on(b"a", compute, 0.0) is None
    call = slices._call
    assert isinstance(call, SlicedCall) and call._thread.is_alive()
    assert slices.go_on(b"b", compute, 60.0) is not None
    assert not call._thread.is_alive() and slices._call is None


def test_slices_are_no_longer_than_a_step_of_those_that_decode(qwen: Eyes, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(qwen.directory, max_batched_tokens=16)
    asked: list[float] = []

    def encode(row: Any, seconds: float) -> bool:
        if seconds:
            asked.append(seconds)
        return False

    monkeypatch.setattr(engine._runner, "encode_images", encode)
    monkeypatch.setattr(PrefillPacer, "decode_seconds", 0.25)
    monkeypatch.setattr(PrefillPacer, "budget", 15)
    qwen.add(engine, 0, [(56, 84)], SamplingParams(max_tokens=1))
    engine.step()
    qwen.add(engine, 1, [TEXT[:2]], greedy(30, ignore_eos=True))
    engine.step()  # beside a prompt alone
    engine.step()  # beside one that decodes
    qwen.add(engine, 2, [[8] * 30], greedy(1))
    engine.step()  # and beside a piece of a prompt
    longest = onlookers.LONGEST_SLICE
    assert asked == [longest, longest, 0.25, 0.125]
