"""The step loop: admit requests, schedule rows, run them, commit what was sampled.

**Error boundary.** Whatever is done for one request (admit, commit, finish) fails that request only. Only the shared
forward pass can fail the rows that were in it; the engine and everybody else go on. A forward pass that runs out of
memory is tried again with fewer tokens.
"""

import logging
import time
from typing import TYPE_CHECKING

from engine.errors import EngineDeadError
from engine.execution.flight import Runner, Step
from engine.failing import Failing
from engine.landing import Landing
from engine.messages import AddImage, AddRequest, AskCached, EngineStats, SequenceOutput
from engine.onlookers import Onlookers
from engine.reception import Reception
from engine.scheduling.block_manager import BlockManager
from engine.scheduling.outbox import Outbox
from engine.scheduling.pacing import SMALLEST_CHUNK, PrefillPacer
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence

if TYPE_CHECKING:
    from engine.grammar.compiler import GrammarCompiler
    from engine.models.image_encoder import ImageEncoder

logger = logging.getLogger(__name__)


class Engine:
    """Requests in, token outputs out. Single-threaded: the process loop calls it between reading and writing."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        *,
        context: int,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        max_queued: int,
        compiler: "GrammarCompiler | None" = None,
        overlap: bool = False,
        min_prefill_tokens: int = SMALLEST_CHUNK,
        encoder: "ImageEncoder | None" = None,
    ) -> None:
        """`context` is the most tokens of one sequence, prompt included; `vocab_size` the width of the logits.

        Of `eos_token_ids` those outside the logits are dropped: configurations hold such ones, and no model says them.
        Without a `compiler` constrained requests are refused. With `overlap` a step is launched before the results of
        the one before are read, so that the device need not wait for the host; a sequence that ends then has a row
        in one step too many, whose result is dropped. `min_prefill_tokens` is what a step beside decoding sequences
        always has for prompts. Without an `encoder` images are refused.
        """
        self._runner = runner
        self._overlap = overlap
        self._step: Step | None = None
        """The step whose results have not been read."""
        self._scheduler = scheduler
        self._blocks: BlockManager = scheduler.blocks
        self._sequences: dict[int, list[Sequence]] = {}
        self._outbox = Outbox()
        self._landing = Landing(runner, scheduler, self._outbox, self._sequences)
        self._failing = Failing(scheduler, self._landing)
        self._reception = Reception(
            scheduler,
            self._outbox,
            self._sequences,
            context=context,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            max_queued=max_queued,
            compiler=compiler,
            encoder=encoder,
        )
        self._num_steps = 0
        self.is_asleep = False
        """Whether the model is put away; there are no steps then."""
        self._landed_at = 0.0
        self._pacer = PrefillPacer(scheduler.max_prefill_tokens, min_prefill_tokens)
        self._onlookers = Onlookers(runner, self._pacer, self._landing.fail)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return self._scheduler.has_work or self._step is not None or bool(self._outbox)

    @property
    def context(self) -> int:
        """Most tokens of one sequence, prompt included."""
        return self._reception.context

    @property
    def failure(self) -> str | None:
        """Why steps will go on failing in this process, so that another should take its place."""
        return self._failing.for_good

    def add(self, request: AddRequest) -> None:
        """Queue a request; a refusal becomes its output of the next step."""
        if self.is_asleep:
            self.wake()
        self._reception.add(request)

    def add_image(self, image: AddImage) -> None:
        """Take an image of the request that comes next."""
        self._reception.add_image(image)

    def count_cached(self, question: AskCached) -> int:
        """The leading tokens of a prompt that the prefix cache would spare a request now."""
        return self._reception.count_cached(question)

    def abort(self, request_ids: list[int], index: int | None = None) -> None:
        """Forget requests, or one choice of each, wherever they are; unknown and finished ones are ignored.

        No output of theirs follows.
        """
        self._outbox.drop(request_ids, index)
        for request_id in request_ids:
            if index is None and self._reception.drop(request_id):
                self._outbox.num_aborted += 1
            for sequence in self._sequences.get(request_id, ()):
                if not sequence.is_finished and index in (None, sequence.index):
                    self._scheduler.finish(sequence, "abort")
                    self._outbox.num_aborted += 1
                    self._landing.forget(sequence)

    def warm_up(self) -> None:
        """Prepare in the background what the first constrained request needs."""
        self._reception.start()

    def close(self) -> None:
        """End what runs beside the engine; it takes no constrained requests afterwards."""
        self._reception.close()
        self._runner.close()

    def take_outputs(self) -> list[SequenceOutput]:
        """The outputs that are there without a step: of requests that were queued or refused, for one."""
        self._reception.admit_compiled()
        return self._outbox.take()

    def step(self) -> list[SequenceOutput]:
        """Run one step and return all outputs that are there then."""
        if self.is_asleep:
            return []
        self._reception.admit_compiled()
        former, launched, error = self._step, None, None
        scheduled = self._scheduler.schedule()
        rows = self._onlookers.ready(scheduled)
        if rows:
            try:
                launched = self._launch(rows)
            except Exception as failure:
                error = failure
        if former is not None:
            self._land(former)
        if error is not None:
            self._failing.at_launch(rows, error)
        if launched is not None and not self._sample(launched):
            launched = None
        if launched is not None and not self._overlap:
            self._land(launched)
            launched = None
        self._step = launched
        if not scheduled and former is None:
            self._rest()
        return self.take_outputs()

    def sleep(self) -> tuple[int, int]:
        """Put the model away, which nobody may be using; the bytes freed on its device, and taken on the host."""
        self.settle()
        assert not self._sequences, "who is asked does not sleep"
        self._blocks.reset_cache()
        self.is_asleep = True
        return self._runner.sleep()

    def wake(self) -> None:
        """Bring the model back. Raises `torch.OutOfMemoryError` where there is no room for it."""
        self._runner.wake()
        self.is_asleep = False

    def settle(self) -> None:
        """Wait for the step that is under way, if one is; its outputs come with the next step's."""
        step, self._step = self._step, None
        if step is not None:
            self._land(step)

    def shrink(self, num_blocks: int) -> int:
        """Withdraw up to `num_blocks` KV blocks for good, between steps; how many are left, at least one.

        Sequences that hold more than the rest can compute end now, with `length` if they have generated something,
        else with an error. Their outputs come with the next step.
        """
        self.settle()
        for sequence in self._scheduler.shrink(num_blocks):
            if sequence.finish_reason == "length":
                self._landing.publish(sequence, [], None, "length")
            else:
                self._landing.fail(
                    sequence,
                    f"the prompt has {sequence.num_prompt_tokens} tokens; memory ran short, and the context is "
                    f"{self.context} tokens now",
                )
        return self._blocks.num_blocks

    def stats(self) -> EngineStats:
        """Counters and gauges now."""
        outbox, blocks = self._outbox, self._blocks
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=self._reception.num_waiting,
            blocks_total=blocks.num_blocks,
            blocks_free=blocks.num_free,
            blocks_cached=blocks.num_cached,
            blocks_owned=blocks.num_owned,
            steps=self._num_steps,
            prompt_tokens=outbox.num_prompt_tokens,
            cached_tokens=outbox.num_cached_tokens,
            generation_tokens=outbox.num_generated,
            preemptions=self._scheduler.num_preemptions,
            aborted=outbox.num_aborted,
            failed=outbox.num_failed,
            encode_seconds=round(self._onlookers.seconds, 6),
        )

    def _launch(self, rows: list[Scheduled]) -> Step:
        self._num_steps += 1
        started = time.perf_counter()
        step = Step(rows, self._runner.forward(rows), started)
        for row in rows:
            self._scheduler.advance(row)
        return step

    def _sample(self, step: Step) -> bool:
        """Launch a step's sampling; False if that failed, and then nobody is in the step any more."""
        try:
            step.sample()
        except Exception as error:
            self._failing.at_sampling(step.rows, error)
            return False
        return True

    def _land(self, step: Step) -> None:
        """Note what was computed and give each sequence its scores and the token sampled for it."""
        try:
            landed = step.land()
        except Exception as error:
            self._failing.at_landing(step.rows, error)
            return
        self._observe(step)
        for row in step.rows:
            if not row.is_current:
                continue
            row.sequence.num_unread_tokens = 0
            try:
                self._landing.land(row, landed)
            except EngineDeadError as error:
                self._failing.at_landing(step.rows, error)
                return
            except Exception:
                logger.exception("request %d failed after a step", row.sequence.request_id)
                self._landing.fail(row.sequence, "internal error while computing this request")

    def _observe(self, step: Step) -> None:
        """Tell the pacer how long a step took: since its launch, or since the one before landed."""
        now = time.perf_counter()
        num_decodes = sum(row.num_tokens == 1 for row in step.rows)
        num_prefill_tokens = sum(row.num_tokens for row in step.rows) - num_decodes
        self._pacer.observe(
            now - max(step.started, self._landed_at), num_decodes=num_decodes, num_prefill_tokens=num_prefill_tokens
        )
        self._landed_at = now
        self._scheduler.max_prefill_tokens = self._pacer.budget

    def _rest(self) -> None:
        """Nothing was scheduled and nothing is under way: check the books.

        If something is left to do, fail it. It takes a bug to come here; spinning for ever would hide it.
        """
        if not self._scheduler.has_work:
            self._scheduler.check()
            assert not self._sequences, "a request outlived its sequences"
            self._runner.rest()
            return
        sequence = (self._scheduler.waiting or self._scheduler.running)[0]
        logger.error("nothing can be scheduled: %s blocks %s", sequence, self.stats())
        self._landing.fail(sequence, "internal error while scheduling this request")
