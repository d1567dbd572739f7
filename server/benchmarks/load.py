"""How requests arrive: clients that each wait for their answer, or at random times that wait for nobody."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from server.benchmarks.chat_stream import Reply

Send = Callable[[], Awaitable[Reply]]


@dataclass(slots=True)
class Run:
    """What came of one run."""

    replies: list[Reply] = field(default_factory=list)
    wall: float = 0.0
    """Seconds from the first request to the last answer."""
    client_cpu: float = 0.0
    """Seconds of this process's own computing for each of them."""
    latest: float = 0.0
    """Seconds that a request was sent after its time, at most; more than a few milliseconds means a busy client."""


async def closed_loop(
    send: Send, clients: int, *, requests: int = 0, seconds: float = 0.0, on_reply: Callable[[], None] = lambda: None
) -> Run:
    """So many clients, each sending one request after another: `requests` in all, or for so many seconds."""
    run = Run()
    left = requests
    began, cpu = time.perf_counter(), time.process_time()

    async def client() -> None:
        nonlocal left
        while time.perf_counter() - began < seconds if seconds else left > 0:
            left -= 1
            run.replies.append(await send())
            on_reply()

    await asyncio.gather(*(client() for _ in range(clients)))
    return _ended(run, began, cpu)


async def open_loop(
    send: Send, rate: float, *, requests: int, seed: int, on_reply: Callable[[], None] = lambda: None
) -> Run:
    """Requests that come independently of each other, `rate` a second on average, whether others are answered or not.

    The pauses between them are exponential, so the arrivals are a Poisson process.
    """
    run = Run()
    pauses = random.Random(f"{seed} arrivals")
    began, cpu = time.perf_counter(), time.process_time()

    async def one() -> None:
        run.replies.append(await send())
        on_reply()

    due, tasks = began, []
    for _ in range(requests):
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        run.latest = max(run.latest, time.perf_counter() - due)
        tasks.append(asyncio.create_task(one()))
        due += pauses.expovariate(rate)
    await asyncio.gather(*tasks)
    return _ended(run, began, cpu)


def _ended(run: Run, began: float, cpu: float) -> Run:
    run.wall = max((reply.finished for reply in run.replies), default=time.perf_counter()) - began
    run.client_cpu = (time.process_time() - cpu) / run.wall if run.wall else 0.0
    return run
