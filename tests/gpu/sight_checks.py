"""What `make gpu` checks of models that see, written for any device, so that `make test` tries the checks on the CPU.

Images go the way of the server, cut by the worker's processors into whole numbers; transformers gets them in floats.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch

from engine.engine import Engine
from engine.execution.image_cache import ImageCache
from engine.execution.model_runner import ModelRunner
from engine.execution.sight import Sight
from engine.execution.slices import Slices
from engine.messages import AddRequest, SequenceOutput
from engine.sampling_params import SamplingParams
from engine.scheduling.images import ImageInbox, PromptImage
from tests.engine.test_oracle import make_engine
from tests.engine.test_oracle_images import finish
from tests.engine.test_oracle_vision import CONVERSATIONS, TEXT, greedy
from tests.gpu.checks import ROUNDING_RATIO, tokens_of
from tests.tiny_models import VOCAB_SIZE
from tests.vision_models import Eyes, oracle

SIZES = ((56, 84), (30, 150), (140, 56), (60, 60))
"""Of images, height and width: whole windows and cut ones, several tiles and one, long and small ones."""
FIRST_MARK = 310
"""From here on tokens are marks of images, which an answer must not have for transformers to read it again."""
TOP = 20
UNRECORDED: dict[str, Any] = {"attention": "sdpa", "graphs": False}
"""Engines that are there at once."""
IMAGES = 12
"""Different ones, of which few are kept."""


def runner_of(eyes: Eyes, device: str, dtype: torch.dtype) -> ModelRunner:
    """That of an engine of which only images are wanted."""
    runner = make_engine(eyes.directory, device=device, dtype=_name(dtype), **UNRECORDED)._runner
    assert isinstance(runner, ModelRunner)
    return runner


def sight_of(runner: ModelRunner) -> Sight:
    """What it does with images; asserts that fp32 is fp32 on its device."""
    assert runner.sight is not None
    if runner.device.type == "cuda":
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    return runner.sight


def image_of(eyes: Eyes, size: tuple[int, ...]) -> PromptImage:
    """An image as the engine has it when it is encoded."""
    tokens, (image,), spans = eyes.prompt([size])
    inbox = ImageInbox()
    inbox.add(image)
    return inbox.claim(AddRequest(0, tokens, greedy(1), images=spans))[0]


def shown(eyes: Eyes, size: tuple[int, ...], device: str, dtype: torch.dtype) -> torch.Tensor:
    """What transformers shows its decoder of an image: rows as `ImageEncoder.encode` gives them, with more behind."""
    tokens, _, (span,) = eyes.prompt([size])
    model, seen = oracle(eyes.directory, dtype, device), {}

    def note(module: Any, arguments: Any, inputs: dict[str, Any]) -> None:
        seen.update(inputs)

    handle = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    try:
        model(**eyes.own_inputs([size], tokens, device))
    finally:
        handle.remove()
    states: torch.Tensor | None = seen.get("cross_attention_states")
    if states is not None:
        return states.flatten(0, 1)
    embedded = seen["inputs_embeds"][0, span.start : span.start + span.length]
    return torch.cat([embedded, *(seen.get("deepstack_visual_embeds") or ())], dim=1)


@torch.inference_mode()
def towers_are_as_good_as_transformers(
    eyes: Eyes, device: str, dtype: torch.dtype, *, ratio: float = ROUNDING_RATIO
) -> None:
    """What towers give, against transformers' in fp32, by the row that is furthest off, whose error is a median."""
    encoder = sight_of(runner_of(eyes, device, dtype)).encoder
    for size in SIZES:
        ours = encoder.encode(image_of(eyes, size))
        exact = shown(eyes, size, device, torch.float32)[: len(ours)]
        own = shown(eyes, size, device, dtype)[: len(ours)]
        assert ours.shape == exact.shape and ours.dtype == dtype
        found, bound = _furthest(ours, exact), ratio * _furthest(own, exact) + 2e-4
        assert found <= bound, (size, found, bound)


def _furthest(values: torch.Tensor, exact: torch.Tensor) -> float:
    return float((values.float() - exact).abs().median(dim=1).values.max())


@torch.inference_mode()
def towers_in_slices_give_the_same(eyes: Eyes, device: str, dtype: torch.dtype) -> None:
    """To the bit, stopped wherever it may be: on a GPU between layers."""
    sight = sight_of(runner_of(eyes, device, dtype))
    slices = Slices(sight._parts_of_tower(), sight.encoder.device)
    for size in SIZES[:2]:
        make = partial(sight.images.make, image_of(eyes, size))
        whole, number = make(), 1
        while (found := slices.go_on(b"", make, 0.0)) is None:
            number += 1
        assert number > 2 and torch.equal(whole, found), (size, number)


def talk(
    engine: Engine, eyes: Eyes, conversations: Sequence[list[Any]], params: SamplingParams, *, apart: int = 2
) -> list[list[SequenceOutput]]:
    """All outputs of conversations, one of which begins every `apart` steps."""
    outputs: list[list[SequenceOutput]] = [[] for _ in conversations]
    waiting = list(enumerate(conversations))
    for step in range(5000):
        if waiting and step % apart == 0:
            eyes.add(engine, *waiting.pop(0), params)
        for output in engine.step():
            outputs[output.request_id].append(output)
        if not waiting and not engine.has_work:
            engine.step()  # the idle self-check
            return outputs
    raise AssertionError("the engine did not become idle")


@cache
def _wanted(eyes: Eyes, name: str, max_tokens: int) -> list[int]:
    """What `generate` says in fp32 on the CPU; the same question, of other engines, is answered once."""
    return eyes.generate(CONVERSATIONS[name], max_tokens, eos_token_id=-1)


def every_way_says_what_generate_says(eyes: Eyes, device: str, **options: Any) -> ModelRunner:
    """Greedy tokens in fp32 of conversations that come one after another, with images and without; then of text alone.

    Returns the runner, for a look at what it did.
    """
    engine = make_engine(eyes.directory, device=device, max_num_seqs=6, **options)
    runner = engine._runner
    assert isinstance(runner, ModelRunner)
    sight_of(runner)
    for names in (list(CONVERSATIONS), ["text"]):
        found = talk(engine, eyes, [CONVERSATIONS[name] for name in names], greedy(16, ignore_eos=True))
        for name, outputs in zip(names, found, strict=True):
            assert tokens_of(outputs) == _wanted(eyes, name, 16), name
    return runner


@torch.inference_mode()
def logits_behind_images_are_as_good_as_transformers(
    eyes: Eyes, device: str, dtype: torch.dtype, *, ratio: float = ROUNDING_RATIO, **options: Any
) -> ModelRunner:
    """Log-probabilities of the likeliest tokens in answers, against transformers' in fp32 at the same places.

    By the median error, as in `checks.logits_are_as_good_as_transformers`. Returns the runner.
    """
    conversations = [parts for parts in CONVERSATIONS.values() if any(isinstance(part, tuple) for part in parts)]
    engine = make_engine(eyes.directory, device=device, dtype=_name(dtype), max_batched_tokens=32, max_num_seqs=6,
                         **options)  # fmt: skip
    params = greedy(4, ignore_eos=True, logprobs=TOP, logit_bias=dict.fromkeys(range(FIRST_MARK, VOCAB_SIZE), -100.0))
    ours, exact, own = [], [], []
    for parts, outputs in zip(conversations, talk(engine, eyes, conversations, params), strict=True):
        answer = tokens_of(outputs)
        entries = [entry for output in outputs for entry in output.logprobs or ()]
        ids = torch.tensor([entry.top_ids for entry in entries], device=device)
        assert ids.shape == (4, TOP)
        ours += [torch.tensor([entry.top_logprobs for entry in entries], device=device)]
        exact += [_logprobs(eyes, parts, answer, device, torch.float32).gather(1, ids)]
        own += [_logprobs(eyes, parts, answer, device, dtype).gather(1, ids)]
    reference = torch.stack(exact)
    error, bound = _error(ours, reference), ratio * _error(own, reference) + 2e-4
    assert error <= bound, (error, bound)
    runner = engine._runner
    assert isinstance(runner, ModelRunner)
    return runner


def _logprobs(eyes: Eyes, parts: list[Any], answer: list[int], device: str, dtype: torch.dtype) -> torch.Tensor:
    """Those of every token `[answer, V]`, by transformers, where each token of the answer was to come."""
    tokens = [*eyes.prompt(parts)[0], *answer]
    logits = oracle(eyes.directory, dtype, device)(**eyes.own_inputs(parts, tokens, device)).logits
    return torch.as_tensor(logits[0, -len(answer) - 1 : -1].float().log_softmax(-1))


def _error(found: list[torch.Tensor], exact: torch.Tensor) -> float:
    return float((torch.stack(found) - exact).abs().median())


def the_largest_image_is_counted(sight: Sight) -> None:
    """Encoding takes memory, of which some is free between slices."""
    found = sight.rehearse()
    assert 0 < found.between < found.peak, found


def images_leave_nothing_behind(eyes: Eyes, device: str, allocated: Callable[[], int]) -> None:
    """After many different images no more memory is `allocated` than after a few, where few are kept."""
    engine = make_engine(eyes.directory, device=device, **UNRECORDED)
    sight = sight_of(engine._runner)  # type: ignore[arg-type]
    one = sight.images.make(image_of(eyes, SIZES[0])).nbytes
    if isinstance(sight.images, ImageCache):
        sight.images._budget = 2 * one
    elif sight.shelf is not None:
        sight.shelf.capacity = 2 * sight.encoder.max_units

    def ask(seeds: range) -> int:
        for seed in seeds:
            eyes.add(engine, seed, [TEXT[:3], (*SIZES[0], seed), TEXT], greedy(2))
            assert finish(engine)[seed, 0]
        return allocated()

    before = ask(range(6))
    more = ask(range(6, 6 + IMAGES)) - before
    assert more < 4 * one, (more, one)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
