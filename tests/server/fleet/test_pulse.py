"""The pulse of a process, felt by the server: beats, last words, ends."""

import asyncio
import os
import threading
import time

from engine.pulse import BEAT_SECONDS, Pulse
from server.fleet.pulse import PulseReader


def test_beats_are_felt_and_the_last_word_is_heard() -> None:
    async def scenario() -> None:
        reader = PulseReader()
        writing = os.dup(reader.theirs)
        reader.started()
        assert reader.felt is None and reader.last_word is None
        pulse, began = Pulse(writing), time.monotonic()
        pulse.begin()
        async with asyncio.timeout(10):
            while reader.felt is None:
                await asyncio.sleep(0.01)
        assert began <= reader.felt <= time.monotonic()
        pulse.say("one thing")
        os.write(writing, b"...")
        pulse.say("another...\nin two lines")
        await asyncio.sleep(0.05)
        assert reader.last_word == "another... in two lines"
        reader.close()
        reader.close()
        pulse.say("nobody's")
        reader.read()
        await asyncio.sleep(1.5 * BEAT_SECONDS)  # the next beat finds nobody, and is the last
        assert not any(thread.name == "pulse" for thread in threading.enumerate())
        os.close(writing)
        assert reader.last_word == "another... in two lines"

    asyncio.run(scenario())


def test_without_a_listener_nothing_is_written() -> None:
    pulse = Pulse(None)
    pulse.begin()
    pulse.say("whatever")
