"""The pulse of a process, felt by the server: beats, last words, ends."""

import asyncio
import os
import threading
import time
from collections.abc import Callable

from engine.pulse import Pulse
from server.fleet.pulse import PulseReader
from tests.clocks import PATIENCE


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def test_beats_are_felt_and_the_last_word_is_heard() -> None:
    async def scenario() -> None:
        reader = PulseReader()
        writing = os.dup(reader.theirs)
        reader.started()
        assert reader.felt is None and reader.last_word is None
        pulse, began = Pulse(writing), time.monotonic()
        pulse.begin()
        await until(lambda: reader.felt is not None)
        assert began <= (reader.felt or 0.0) <= time.monotonic()
        pulse.say("one thing")
        os.write(writing, b"...")
        pulse.say("another...\nin two lines")
        await until(lambda: reader.last_word == "another... in two lines")
        reader.close()
        reader.close()
        pulse.say("nobody's")
        reader.read()
        # The next beat finds nobody, and is the last.
        await until(lambda: not any(thread.name == "pulse" for thread in threading.enumerate()))
        os.close(writing)
        assert reader.last_word == "another... in two lines"

    asyncio.run(scenario())


def test_without_a_listener_nothing_is_written() -> None:
    pulse = Pulse(None)
    pulse.begin()
    pulse.say("whatever")
