"""Time in tests, none of which may depend on how quick or quiet the machine is.

What takes long is told by a fake clock, by counting steps, or by how the work grows with its input. A clock on the wall
only ends what would never end.
"""

import time
from collections.abc import Callable

PATIENCE = 90.0
"""Seconds after which a test gives up on what should have come long ago. No promise of the product."""
REPEATS = 3


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait for a condition, and fail if it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Time that this thread was computing, the least of a few tries."""
    times = []
    for _ in range(REPEATS):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return min(times)


def assert_linear(work: Callable[[int], Callable[[], object]], size: int, *, factor: int = 8) -> None:
    """Fail if input of `factor` times the size takes three times `factor` of the time, as quadratic work would.

    `work` makes an input of a size and gives what is to be measured; at `size` it should be worth some milliseconds.
    """
    small, large = cpu_seconds(work(size)), cpu_seconds(work(size * factor))
    assert large < 3 * factor * small, f"{factor} times the input took {large / small:.0f} times as long"
