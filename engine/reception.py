"""Requests on their way in: checked, their constraints compiled, made into the sequences that the scheduler has."""

import logging
import time
from typing import TYPE_CHECKING

from engine.errors import RequestError
from engine.grammar.grammar import Compiled
from engine.messages import AddImage, AddRequest, AskCached
from engine.sampling_params import SamplingParams
from engine.scheduling.admission import check_request, make_sequences
from engine.scheduling.grammar_queue import GrammarQueue
from engine.scheduling.images import ImageInbox, PromptImage
from engine.scheduling.outbox import Outbox
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence

if TYPE_CHECKING:
    from engine.grammar.compiler import GrammarCompiler
    from engine.models.image_encoder import ImageEncoder

logger = logging.getLogger(__name__)

MAX_PIXEL_BYTES = 1 << 30
"""Of the images of all requests, which are kept until these end."""


class Reception:
    """Between a request's arrival and its first step. A refusal becomes its output, and hurts nobody else."""

    def __init__(
        self,
        scheduler: Scheduler,
        outbox: Outbox,
        sequences: dict[int, list[Sequence]],
        *,
        context: int,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        max_queued: int,
        compiler: "GrammarCompiler | None",
        encoder: "ImageEncoder | None",
    ) -> None:
        """`sequences`, to which more are added, are those of each request that was admitted; see `Engine`."""
        self._scheduler = scheduler
        self._blocks = scheduler.blocks
        self._outbox = outbox
        self._sequences = sequences
        self._context = context
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(token for token in eos_token_ids if 0 <= token < vocab_size)
        self._max_queued = max_queued
        self._grammars = GrammarQueue(compiler)
        self._encoder = encoder
        self._inbox = ImageInbox()
        self._images: dict[int, tuple[PromptImage, ...]] = {}
        """Of requests whose constraint is being compiled."""

    @property
    def context(self) -> int:
        """Most tokens of one sequence, prompt included: at most what the blocks hold, and one that stays uncomputed."""
        return min(self._context, self._blocks.num_blocks * self._blocks.block_size + 1)

    @property
    def num_waiting(self) -> int:
        """Sequences and requests that wait for a place or for their constraint."""
        return len(self._scheduler.waiting) + len(self._grammars)

    def start(self) -> None:
        """Prepare in the background what the first constrained request needs."""
        self._grammars.start()

    def close(self) -> None:
        """End what runs beside the engine; constrained requests are refused afterwards."""
        self._grammars.close()

    def add(self, request: AddRequest) -> None:
        """Queue a request, or refuse it."""
        try:
            images = self._inbox.claim(request, whole=self._encoder is not None and self._encoder.both_ways)
            self._check(request)
            self._check_images(images)
            if request.params.needs_grammar:
                self._grammars.add(request)
                self._images[request.request_id] = images
            else:
                self._admit(request, images)
        except RequestError as error:
            self._outbox.refused(request, error)
        except Exception:
            logger.exception("request %d could not be admitted", request.request_id)
            self._outbox.refused(request, RequestError("internal error while admitting the request"))

    def add_image(self, image: AddImage) -> None:
        """Take an image of the request that comes next."""
        self._inbox.add(image)

    def count_cached(self, question: AskCached) -> int:
        """The leading tokens of a prompt that the prefix cache would spare a request now."""
        whole = self._encoder is not None and self._encoder.both_ways
        images = tuple(PromptImage(one.start, one.length, one.digest, (), (), (), whole) for one in question.images)
        asked = AddRequest(0, question.prompt_token_ids, SamplingParams(max_tokens=1), salt=question.salt)
        context = self.context
        (sequence,) = make_sequences(asked, None, context=context, eos_token_ids=frozenset(), images=images)
        return self._blocks.count_cached(sequence)

    def drop(self, request_id: int) -> bool:
        """Forget a request whose constraint is being compiled; whether there was one."""
        if not self._grammars.drop(request_id):
            return False
        self._images.pop(request_id)
        return True

    def _check(self, request: AddRequest) -> None:
        """Raise RequestError for what cannot be served as asked, or not now."""
        capacity = self._blocks.num_blocks * self._blocks.block_size
        image_token = None if self._encoder is None else self._encoder.token_id
        check_request(
            request,
            vocab_size=self._vocab_size,
            context=self.context,
            capacity=capacity,
            image_token=image_token,
        )
        if request.request_id in self._sequences or request.request_id in self._grammars:
            raise RequestError(f"request {request.request_id} is running already")
        if self.num_waiting + request.n > self._max_queued:
            raise RequestError(f"the queue of {self._max_queued} requests is full", code="overloaded")

    def _check_images(self, images: tuple[PromptImage, ...]) -> None:
        if images and self._encoder is None:
            raise RequestError("this model takes no images", param="messages")
        if not images or self._encoder is None:
            return
        self._encoder.check(images)
        held = sum(image.num_bytes for asked in self.asked_images() for image in asked)
        if held and held + sum(image.num_bytes for image in images) > MAX_PIXEL_BYTES:
            raise RequestError(
                f"the images of other requests take {held >> 20} MiB, and {MAX_PIXEL_BYTES >> 20} MiB is what may wait",
                code="overloaded",
            )
        shelf = self._scheduler.shelf
        if shelf is not None and (units := shelf.units(images)) > shelf.capacity:
            raise RequestError(
                f"the images of this request take {units} tiles; at most {shelf.capacity} can be seen at once",
                param="messages",
            )

    def asked_images(self) -> list[tuple[PromptImage, ...]]:
        """The images of each request that is here."""
        return [*self._images.values(), *(sequences[0].images for sequences in self._sequences.values())]

    def admit_compiled(self) -> None:
        """Queue the requests whose constraints have been compiled meanwhile."""
        for request, result, came_at in self._grammars.collect():
            images = self._images.pop(request.request_id)
            if isinstance(result, RequestError):
                self._outbox.refused(request, result, time.perf_counter() - came_at)
            else:
                self._admit(request, images, result, came_at)

    def _admit(
        self,
        request: AddRequest,
        images: tuple[PromptImage, ...],
        compiled: Compiled | None = None,
        came_at: float | None = None,
    ) -> None:
        """Queue its sequences. `compiled` is its constraint, `came_at` when it came if that was not just now."""
        now = time.perf_counter()
        grammar, relaxed = (None, None) if compiled is None else (compiled.grammar, compiled.relaxed)
        placement = self._encoder.place(len(request.prompt_token_ids), images) if self._encoder else None
        sequences = make_sequences(
            request,
            grammar,
            context=self.context,
            eos_token_ids=self._eos_token_ids,
            images=images,
            placement=placement,
            arrived_at=now if came_at is None else came_at,
        )
        for sequence in sequences:
            self._scheduler.add(sequence)
        self._sequences[request.request_id] = sequences
        self._outbox.accepted(request, relaxed, None if came_at is None else now - came_at)
