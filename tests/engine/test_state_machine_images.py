"""Requests about images under random histories: each gets what transformers says, and nothing of it stays behind.

The engine is real and its models are tiny, one of each kind: images as tokens, images whose tokens see each other, and
images that tokens look at. What is played is the same each time, more of it under `make soak`.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from engine import onlookers
from engine.engine import Engine
from engine.execution.cross_images import CrossImages
from engine.messages import AddRequest, SequenceOutput
from engine.scheduling.pacing import PrefillPacer
from engine.sizing import towers
from tests.engine.test_oracle import make_engine
from tests.engine.test_oracle_vision import CONVERSATIONS, TEXT, greedy
from tests.soaking import SOAK
from tests.vision_models import Eyes, build_seeing_model

HISTORIES = 400 if SOAK else 25
RULES = 40
MAX_TOKENS = 8
PROMPTS: tuple[list[Any], ...] = (*CONVERSATIONS.values(), [TEXT[:3], (56, 84), TEXT[::-1]], [(56, 84), 6, (56, 84), 9])
"""Several begin alike, and several have the same image."""


@dataclass
class Asked:
    """A choice of a request that has not ended."""

    prompt: int
    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    may_fail: bool = False


class SeeingMachine(RuleBasedStateMachine):
    """What can happen to an engine whose requests have images. One engine serves all histories of a family."""

    eyes: ClassVar[Eyes]
    engine: ClassVar[Engine]
    num_answers: ClassVar[int] = 0
    patch: ClassVar[pytest.MonkeyPatch]
    expected: ClassVar[list[list[int]]]
    """What transformers answers to each of the prompts."""

    @initialize(sliced=st.booleans(), images_kept=st.sampled_from([0, 1, 3, 100]))
    def begin(self, sliced: bool, images_kept: int) -> None:
        """With towers that stop at each operation or never, and room for so many embeddings of images."""
        seconds = 1e-9 if sliced else 1e9
        for name in ("SHORTEST_SLICE", "LONGEST_SLICE"):
            self.patch.setattr(onlookers, name, seconds)
        self.engine.abort(list(self.engine._sequences))  # what a history that failed has left
        self.engine.step()
        self.scheduler.blocks.reset_cache()
        self.live: dict[tuple[int, int], Asked] = {}
        self.next_id = 0
        self.forget_images()
        if not self.crosses:
            self.images._budget = images_kept * 24 * 64 * 4

    @property
    def sight(self) -> Any:
        return self.engine._runner.sight  # type: ignore[attr-defined]

    @property
    def images(self) -> Any:
        return self.sight.images

    @property
    def crosses(self) -> bool:
        return isinstance(self.images, CrossImages)

    @property
    def scheduler(self) -> Any:
        return self.engine._scheduler

    @rule(
        asked=st.lists(
            st.tuples(st.integers(0, len(PROMPTS) - 1), st.integers(1, MAX_TOKENS), st.sampled_from([1, 1, 2])),
            min_size=1,
            max_size=3,
        ),
        count=st.sampled_from([0, 3, 40]),
    )
    def ask(self, asked: list[tuple[int, int, int]], count: int) -> None:
        for prompt, max_tokens, n in asked:
            self.eyes.add(self.engine, self.next_id, PROMPTS[prompt], greedy(max_tokens), n=n)
            for index in range(n):
                self.live[self.next_id, index] = Asked(prompt, max_tokens)
            self.next_id += 1
        self.steps(count)

    @rule(prompt=st.integers(0, len(PROMPTS) - 1))
    def ask_without_the_images(self, prompt: int) -> None:
        """A request whose images have not come, after some that nobody claims."""
        tokens, images, spans = self.eyes.prompt(PROMPTS[prompt])
        for image in images:
            if image.digest != images[0].digest:
                self.engine.add_image(image)
        self.engine.add(AddRequest(self.next_id, tokens, greedy(1), images=spans))
        if spans:
            self.live[self.next_id, 0] = Asked(prompt, 0, may_fail=True)
        else:
            self.live[self.next_id, 0] = Asked(prompt, 1)
        self.next_id += 1

    @rule(count=st.sampled_from([1, 2, 5, 20, 60]))
    def go_on(self, count: int) -> None:
        self.steps(count)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    # Without preconditions: what is live depends on how long steps took, and what is drawn must not.
    @rule(which=st.integers(0, 99), index=st.sampled_from([None, None, 0, 1]))
    def abort(self, which: int, index: int | None) -> None:
        request_id = list(self.live)[which % len(self.live)][0] if self.live else 0
        self.engine.abort([request_id], index)
        for key in [key for key in self.live if key[0] == request_id and index in (None, key[1])]:
            del self.live[key]

    @rule(which=st.integers(0, 9))
    def preempt(self, which: int) -> None:
        self.steps(2)  # else most of those that were just asked would still wait
        running = self.scheduler.running
        if running:
            self.scheduler.preempt(running[which % len(running)])

    @rule()
    def forget_prefixes(self) -> None:
        self.scheduler.blocks.reset_cache()

    @rule()
    def forget_images(self) -> None:
        """Those that may be given up at any time."""
        if not self.crosses:
            self.images._kept.clear()
            self.images.num_bytes = 0

    @rule(count=st.integers(1, 60))
    def fail_a_tower(self, count: int) -> None:
        """Steps in which nothing can be encoded: whoever needs it fails, and nobody else."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(self.images), "make", lambda *_: 1 / 0)
            for asked in self.live.values():
                asked.may_fail = True
            for _ in range(count):
                self.step()
            self.sight.rest()
            for asked in self.live.values():
                asked.may_fail = asked.max_tokens == 0

    def step(self) -> None:
        for output in self.engine.step():
            self.take(output)
        self.books_agree()

    def take(self, output: SequenceOutput) -> None:
        key = (output.request_id, output.index)
        asked = self.live[key]
        asked.tokens += output.token_ids
        if output.error is not None:
            assert asked.may_fail and any(isinstance(part, tuple) for part in PROMPTS[asked.prompt]), output.error
        else:
            alone = self.expected[asked.prompt][: asked.max_tokens]
            assert asked.tokens == alone[: len(asked.tokens)]
            assert output.finish_reason is None or asked.tokens == alone
            SeeingMachine.num_answers += output.finish_reason is not None
        if output.finish_reason is not None:
            del self.live[key]

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "live"):
            return
        self.scheduler.check()
        kept = self.images._kept
        if self.crosses:
            shelf = self.sight.shelf
            owned = Counter(i for s in self.scheduler.running for i in {image.digest for image in s.images})
            assert shelf._owners == owned and shelf.num_kept <= shelf.capacity
            # One that has lost its place is dropped when the next one is encoded.
            assert len([digest for digest in kept if digest in shelf]) <= shelf.capacity
        else:
            assert self.images.num_bytes == sum(found.nbytes for found in kept.values()) <= self.images._budget
        assert not self.engine._reception._images

    def teardown(self) -> None:
        if not hasattr(self, "live"):
            return
        # Whatever a history was made of, all that can be asked is answered rightly behind it, also after a preemption.
        self.ask([(prompt, MAX_TOKENS, 1) for prompt in range(len(PROMPTS))], 0)
        self.preempt(0)
        for _ in range(20_000):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work and not self.live
        self.step()
        stats = self.engine.stats()
        assert stats.blocks_owned == stats.num_running == stats.num_waiting == 0
        assert not self.engine._reception.asked_images() and not self.engine._sequences
        assert not self.engine._reception._inbox._arrived
        assert not self.sight._held, "embeddings are held for nobody"
        assert self.sight._slices is None or self.sight._slices._call is None, "an image is encoded for nobody"
        assert not [thread for thread in threading.enumerate() if thread.name == "image"]
        if self.crosses:
            assert self.sight.shelf.num_owned == 0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The engine logs each failure with its traceback."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.soak
@pytest.mark.timeout(36_000 if SOAK else 1200)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3_vision", "mllama", "qwen3_vl"])
def test_any_history_gives_what_each_request_gets_alone(
    family: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    eyes = Eyes(family, build_seeing_model(family, tmp_path_factory.mktemp(family)))
    monkeypatch.setattr(towers, "CROSS_IMAGES", 3)
    monkeypatch.setattr(PrefillPacer, "decode_seconds", 0.0)
    longest = max(len(eyes.prompt(parts)[0]) for parts in PROMPTS) + MAX_TOKENS
    engine = make_engine(eyes.directory, num_blocks=longest * 3 // 8, max_batched_tokens=16)
    SeeingMachine.eyes, SeeingMachine.engine, SeeingMachine.patch = eyes, engine, monkeypatch
    SeeingMachine.expected = [eyes.generate(parts, MAX_TOKENS) for parts in PROMPTS]
    SeeingMachine.num_answers = 0
    run_state_machine_as_test(
        SeeingMachine,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=RULES,
            derandomize=not SOAK,
            database=None,
            deadline=None,
            print_blob=SOAK,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert SeeingMachine.num_answers > 5 * HISTORIES
    assert engine.stats().preemptions > 5
