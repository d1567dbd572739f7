"""Where the text work of a request is done: on the event loop, in a thread, or in a process of its own."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import TypeVar

from server.fleet.fleet import EngineHandle
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
Choose = Callable[[str | None, int], EngineHandle]
"""From the model that a request names and its number of choices, the model to use, loaded. Raises `ApiError`."""


async def do_text_work(
    texts: TextPool,
    route: TextRoute,
    raw: bytes,
    choose: Choose,
    *,
    ignore_unknown: bool = False,
    look: Look | None = None,
) -> tuple[list[PromptPlan], Answered]:
    """Read a body and do what its route does with text: the plans of its prompts, or the whole answer.

    `ignore_unknown` lets fields pass that do not exist. `look` looks at the images of the request, if it has any, and
    tells which tokens stand for each; no route without it has images. Raises `ApiError` for all that is wrong with the
    request, and what `choose` and `look` raise.
    """
    if len(raw) > texts.policy.here_bytes:
        async with texts.process(len(raw)) as process:
            read = await process.read(route, raw, ignore_unknown=ignore_unknown)
            handle = choose(read.model, read.num_choices)
            assert handle.info is not None, "a loaded model has it"
            found = await look(handle, read.images) if look and read.images else []
            return await process.make(MakePrompts(handle.info, handle.defaults, handle.tools, found))
    job = await _run(len(raw), lambda: READERS[route](raw, ignore_unknown))
    handle = choose(job.model, job.num_choices)
    model = _model(handle)
    if look and job.images:
        model = dataclasses.replace(model, image_tokens=await look(handle, list(job.images)))
    return await _run(len(raw), lambda: job.do(model))


def _model(handle: EngineHandle) -> Model:
    assert handle.tokenizer is not None and handle.info is not None, "a loaded model has both"
    return Model(handle.tokenizer, handle.info, handle.defaults)


async def _run(num_bytes: int, function: Callable[[], T]) -> T:
    return function() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(function)
