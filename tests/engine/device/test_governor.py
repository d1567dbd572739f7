"""The governor against a made-up machine whose cores others take from time to time."""

from engine.device.governor import LONGEST_HOLD_SECONDS, ThreadGovernor


class Machine:
    """Steps of 10 ms on two threads and 18 ms on one; when others are busy, 500 ms on two and 20 ms on one."""

    def __init__(self) -> None:
        self.threads = 2
        self.now = 0.0
        self.busy = self.changed = False
        self.governor = ThreadGovernor(2, self.apply, lambda: self.now)

    def apply(self, threads: int) -> None:
        self.threads, self.changed = threads, True

    def run(self, steps: int, size: int = 4) -> float:
        """Seconds that so many steps take."""
        before = self.now
        for _ in range(steps):
            seconds = (0.5 if self.busy else 0.010) if self.threads == 2 else (0.020 if self.busy else 0.018)
            if self.changed:  # oneDNN's primitives
                seconds, self.changed = seconds + 0.1, False
            self.now += seconds
            self.governor.observe(seconds, size)
        return self.now - before


def test_a_quiet_machine_keeps_its_threads() -> None:
    machine = Machine()
    assert machine.run(1000) < 1000 * 0.010 + 0.4
    assert machine.threads == 2


def test_a_machine_that_is_busy_from_the_start_gets_one_thread() -> None:
    machine = Machine()
    machine.busy = True
    machine.run(20)
    assert machine.threads == 1


def test_contention_costs_little_and_its_end_is_noticed() -> None:
    machine = Machine()
    machine.run(100)
    machine.busy = True
    assert machine.run(2000) < 2000 * 0.020 + 20 * 0.5
    machine.busy = False
    machine.run(int(LONGEST_HOLD_SECONDS / 0.018) + 20)
    assert machine.threads == 2


def test_a_change_of_size_during_a_trial_ends_it() -> None:
    machine = Machine()
    machine.run(10)
    assert machine.threads == 1  # the first trial
    machine.run(1, size=64)
    assert machine.threads == 2


def test_one_thread_is_left_alone() -> None:
    governor = ThreadGovernor(1, lambda threads: 1 / 0)
    for _ in range(100):
        governor.observe(0.01, 1)
