"""The outputs of all prompts of one request, read as one stream."""

import asyncio
from collections.abc import AsyncGenerator

from engine.constraint import Relaxed
from engine.errors import EngineDeadError, HeadraceError, RequestError
from engine.messages import SequenceOutput
from engine.request_stream import RequestStream

Batch = list[tuple[int, list[SequenceOutput]]]
"""The outputs that came for prompts, by position."""
QUEUED_BATCHES = 64
"""Beyond these, what comes waits in its `RequestStream`, which is bounded."""


class PromptStreams:
    """One `RequestStream` for each prompt. One reader, once."""

    def __init__(self, streams: list[RequestStream]) -> None:
        self._streams = streams
        self._queue: asyncio.Queue[tuple[int, list[SequenceOutput]] | HeadraceError | None] = asyncio.Queue(
            QUEUED_BATCHES
        )

    @property
    def accepted(self) -> bool:
        """Whether the engine has queued all prompts."""
        return all(stream.accepted for stream in self._streams)

    @property
    def relaxed(self) -> Relaxed | None:
        """What the answers' constraint does not hold them to, once all prompts are accepted: they have the same."""
        return self._streams[0].relaxed

    @property
    def compile_seconds(self) -> float | None:
        """What the longest of the prompts' constraints took to compile, None where there is none."""
        return max((s.compile_seconds for s in self._streams if s.compile_seconds is not None), default=None)

    def abort(self) -> None:
        """Forget all prompts. Synchronous; may be called at any moment, any number of times."""
        for stream in self._streams:
            stream.abort()

    def abort_choice(self, position: int, index: int) -> None:
        """Forget one choice of one prompt."""
        self._streams[position].abort(index)

    def poke(self) -> None:
        """Make the reader get something now, an empty batch if nothing has come."""
        if len(self._streams) == 1:
            self._streams[0].poke()
        elif self._queue.empty():
            self._queue.put_nowait((0, []))

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """All that came since the last look, until every choice has ended. Raises what a `RequestStream` raises."""
        if len(self._streams) == 1:
            async for outputs in self._streams[0]:
                yield [(0, outputs)] if outputs else []
            return
        tasks = [asyncio.create_task(self._pump(position, s)) for position, s in enumerate(self._streams)]
        running = len(tasks)
        try:
            while running:
                items = [await self._queue.get()]
                while not self._queue.empty():
                    items.append(self._queue.get_nowait())
                running -= items.count(None)
                if error := next((item for item in items if isinstance(item, HeadraceError)), None):
                    raise error
                if found := [item for item in items if isinstance(item, tuple)]:
                    yield [(position, outputs) for position, outputs in found if outputs]
        finally:
            for task in tasks:
                task.cancel()

    async def _pump(self, position: int, stream: RequestStream) -> None:
        """Put what comes on one stream into the queue, and None at its end."""
        try:
            async for outputs in stream:
                await self._queue.put((position, outputs))
            await self._queue.put(None)
        except (EngineDeadError, RequestError) as error:
            await self._queue.put(error)
