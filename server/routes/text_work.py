"""Where the text work of a request is done: on the event loop, in a thread, or in a process of its own."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from server.fleet.handle import EngineHandle
from server.fleet.lease import Lease
from server.prompt.plan import PromptPlan
from server.prompt.text_messages import Answered, MakePrompts, TextRoute
from server.prompt.text_pool import TextPool
from server.protocol.parts import ImageRef
from server.routes.text_jobs import READERS, Model

INLINE_BYTES = 2048
"""Bodies up to this size are handled on the event loop: a hop to a thread would cost more."""

T = TypeVar("T")
Look = Callable[[EngineHandle, list[ImageRef]], Awaitable[list[list[int]]]]
"""From a loaded model and images, what stands in its prompts for each. Raises `ApiError`."""


class Asked(Protocol):
    """What a request says before its text is read."""

    @property
    def model(self) -> str | None:
        """The model that it names."""

    @property
    def num_choices(self) -> int:
        """How many answers it asks for."""

    @property
    def timeout(self) -> float | None:
        """The seconds that it gives itself."""

    @property
    def answer_tokens(self) -> int:
        """What its answers may take together at the least, before anything is known of its prompts."""


Choose = Callable[[Asked], Lease]
"""From what a request asks for, a hold on the model to use. Raises `ApiError`."""
Wait = Callable[[Lease, bool], Awaitable[None]]
"""Waits until a model is loaded; told whether the answer is a stream. Raises `ApiError`."""


async def do_text_work(
    texts: TextPool,
    route: TextRoute,
    raw: bytes,
    choose: Choose,
    wait: Wait,
    *,
    ignore_unknown: bool = False,
    look: Look | None = None,
) -> tuple[list[PromptPlan], Answered]:
    """Read a body and do what its route does with text: the plans of its prompts, or the whole answer.

    `ignore_unknown` lets fields pass that do not exist. `look` looks at the images of the request, if it has any, and
    tells which tokens stand for each; no route without it has images. Raises `ApiError` for all that is wrong with the
    request, and what `choose`, `wait` and `look` raise.
    """
    if len(raw) > texts.policy.here_bytes:
        return await _do_elsewhere(texts, route, raw, choose, wait, ignore_unknown, look)
    job = await _run(len(raw), lambda: READERS[route](raw, ignore_unknown))
    lease = choose(job)
    await wait(lease, job.is_stream)
    model = _model(lease.handle)
    if look and job.images:
        model = dataclasses.replace(model, image_tokens=await look(lease.handle, list(job.images)))
    return await _run(len(raw), lambda: job.do(model))


async def _do_elsewhere(
    texts: TextPool,
    route: TextRoute,
    raw: bytes,
    choose: Choose,
    wait: Wait,
    ignore_unknown: bool,
    look: Look | None,
) -> tuple[list[PromptPlan], Answered]:
    """The same in a process. It is not kept while a model is loaded, since there are few: the body is read again."""
    lease: Lease | None = None
    while True:
        async with texts.process(len(raw)) as process:
            read = await process.read(route, raw, ignore_unknown=ignore_unknown)
            lease = lease or choose(read)
            if lease.is_active:
                handle = lease.handle
                assert handle.info is not None, "a loaded model has it"
                found = await look(handle, read.images) if look and read.images else []
                return await process.make(MakePrompts(handle.info, handle.terms.defaults, handle.terms.tools, found))
        await wait(lease, read.is_stream)


def _model(handle: EngineHandle) -> Model:
    assert handle.tokenizer is not None and handle.info is not None, "a loaded model has both"
    return Model(handle.tokenizer, handle.info, handle.terms.defaults)


async def _run(num_bytes: int, function: Callable[[], T]) -> T:
    return function() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(function)
