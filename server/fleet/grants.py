"""The books of memory: what each model has been granted of a device, and what of it a sleeping one keeps.

A model that sleeps has two grants: what little its process keeps of its GPU, and its weights in the host's memory. Who
gets something is decided elsewhere (`books`, `residency`).
"""

from collections.abc import Iterator

from engine.messages import Asleep
from server.fleet.devices import CPU
from server.fleet.needs import Need


class Grants:
    """What all models have of all devices, in bytes."""

    def __init__(self) -> None:
        self.budgets: dict[str, int] = {}
        """What all models together may have, by device; empty until the server has started."""
        self._granted: dict[str, Need] = {}
        self._away: dict[str, Need] = {}
        """Of models that sleep, what they need awake."""
        self._hosted: dict[str, int] = {}
        """Of models that sleep, what their weights take in the host's memory."""

    def __contains__(self, name: str) -> bool:
        return name in self._granted

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._granted))

    def of(self, name: str) -> Need | None:
        """What a model has been granted, None while it has nothing."""
        return self._granted.get(name)

    def on(self, device: str) -> list[tuple[str, Need]]:
        """All grants of a device, by model."""
        found = [(name, need) for name, need in self._granted.items() if need.device == device]
        hosted = self._hosted.items() if device == CPU else ()
        return found + [(name, Need(CPU, size, 0)) for name, size in hosted]

    def taken(self, device: str) -> int:
        """Bytes granted on a device."""
        return sum(need.num_bytes for _, need in self.on(device))

    def free(self, device: str) -> int:
        """Bytes of a device's budget that nobody has; below 0 where models turned out larger than was thought."""
        return self.budgets[device] - self.taken(device)

    def is_asleep(self, name: str) -> bool:
        """Whether a model sleeps, or is being put to sleep or woken."""
        return name in self._away

    def awake(self, name: str) -> Need | None:
        """What a model that sleeps needs awake, None of one that does not sleep."""
        return self._away.get(name)

    def lacks(self, name: str, need: Need) -> int:
        """The bytes of a need that a model has not; one that sleeps has some."""
        return max(0, need.num_bytes - self._granted[name].num_bytes) if name in self._away else need.num_bytes

    def give(self, name: str, need: Need) -> None:
        """A model has this from now on, in place of what it had."""
        self._granted[name] = need

    def put_away(self, name: str, host_bytes: int) -> None:
        """A model is being put to sleep: it has room for its weights in the host's memory, and its grant until then."""
        self._away[name], self._hosted[name] = self._granted[name], host_bytes

    def fell_asleep(self, name: str, asleep: Asleep) -> Need:
        """A model has been put to sleep, and that is what it freed and takes; the grant that it keeps."""
        need = self._away[name]
        self._granted[name] = kept = Need(need.device, max(0, need.num_bytes - asleep.device_bytes), 0)
        self._hosted[name] = asleep.host_bytes
        return kept

    def woke(self, name: str) -> None:
        """A model has nothing in the host's memory any more."""
        self._away.pop(name, None)
        self._hosted.pop(name, None)

    def forget(self, name: str) -> None:
        """A model's process has ended, and has nothing any more."""
        self._granted.pop(name, None)
        self.woke(name)
