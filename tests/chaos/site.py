"""A server under attack: its processes, and what it holds when nobody asks it anything."""

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from server.commands.top import parse_metrics
from tests.server import patient
from tests.serving import Served

MIB = 2**20
LOOKS = 3
SPARE_DESCRIPTORS = 4
"""A connection that was just closed may be open on this side for a moment."""
SPARE_MEMORY = 96 * MIB
"""By what all processes together may differ: an engine that was started anew has another history of allocations."""


@dataclass(frozen=True)
class Footprint:
    """What a server holds."""

    descriptors: int
    """Of the server's own process."""
    children: Counter[str]
    """Processes below it by what they are; those that have ended and were not waited for are zombies."""
    memory: int
    """Resident bytes of all of them."""
    held: dict[str, float]
    """What of requests has not been given back, by name of the series; nothing where all is well."""

    def beyond(self, baseline: "Footprint") -> list[str]:
        """What it is too much of."""
        found = [f"{name} is {value:g}" for name, value in self.held.items()]
        if self.descriptors > baseline.descriptors + SPARE_DESCRIPTORS:
            found.append(f"{self.descriptors} descriptors instead of {baseline.descriptors}")
        if more := self.children - baseline.children:
            found.append(f"too many processes: {dict(more)}")
        if self.memory > baseline.memory + SPARE_MEMORY:
            found.append(f"{self.memory // MIB} MiB instead of {baseline.memory // MIB}")
        return found


@dataclass(frozen=True)
class Site:
    """A running server with two models."""

    served: Served
    models: tuple[str, str]
    """The larger one first."""
    weights: Path
    """The smaller one's file of weights."""

    @property
    def process(self) -> psutil.Process:
        """The server's own."""
        return psutil.Process(self.served.pid)

    def engine(self, model: str) -> psutil.Process | None:
        """A model's process, if both models have one: the larger model has the larger one."""
        found = [(child.memory_info().rss, child) for child in self._below() if what(child) == "engine"]
        if len(found) != len(self.models):
            return None
        ordered = [child for _, child in sorted(found, key=lambda entry: -entry[0])]
        return ordered[self.models.index(model)]

    def compilers(self) -> list[psutil.Process]:
        """The processes that try constraints."""
        return [child for child in self._below() if what(child) == "compiler"]

    def states(self) -> dict[str, str]:
        """Where each model stands."""
        return {model["id"]: model["state"] for model in patient.get(f"{self.served.url}/v1/models").json()["data"]}

    def recover(self, seconds: float) -> None:
        """Wait until both models answer; one that has died too often is loaded again. Raises `AssertionError`.

        A death may be noticed a moment late, so it takes several looks.
        """
        deadline, looks = time.monotonic() + seconds, 0
        while looks < LOOKS:
            states = self.states()
            is_well = states == dict.fromkeys(self.models, "ready") and self.engine(self.models[0]) is not None
            looks = looks + 1 if is_well else 0
            assert time.monotonic() < deadline, f"after {seconds:g} s the models are {states}"
            for model, state in states.items():
                if state in ("failed", "unloaded"):
                    self.load(model)
            time.sleep(0.3)

    def load(self, model: str) -> dict[str, Any]:
        """What an operator does with a model that is not there."""
        answer: dict[str, Any] = patient.post(f"{self.served.url}/admin/models/{model}/load").json()
        return answer

    def footprint(self) -> Footprint:
        """What it holds now."""
        below = self._below()
        memory = 0
        for process in (self.process, *below):
            with suppress(psutil.Error):
                memory += process.memory_info().rss
        return Footprint(self.process.num_fds(), Counter(map(what, below)), memory, self._held())

    def settled(self, baseline: Footprint, seconds: float) -> Footprint:
        """What it holds once that is no more than the baseline, or after so many seconds."""
        deadline = time.monotonic() + seconds
        while (found := self.footprint()).beyond(baseline) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def _held(self) -> dict[str, float]:
        metrics = parse_metrics(patient.get(f"{self.served.url}/metrics").text)
        names = ("requests_running", "requests_waiting", "requests_in_flight")
        found = {" ".join(key): value for key, value in metrics.items() if key[0] in names and value}
        for model in self.models:
            states = {state: metrics["kv_blocks", model, state] for state in ("free", "cached", "owned", "total")}
            if missing := states["total"] - states["free"] - states["cached"]:
                found[f"blocks of {model} that are neither free nor cached"] = missing
            if not states["total"]:
                found[f"models without blocks, {model} being one,"] = 1
        return found

    def _below(self) -> list[psutil.Process]:
        return self.process.children(recursive=True)


def what(process: psutil.Process) -> str:
    """What a process below the server is."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return "zombie"
        command = " ".join(process.cmdline())
    except psutil.Error:
        return "gone"
    names = {"engine.process": "engine", "engine.grammar.worker": "compiler", "text_worker": "text", "images": "image"}
    return next((kind for name, kind in names.items() if name in command), "other")
