"""What `attention: auto` takes on a GPU, with times that are made up."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.attention import choice, trial
from engine.attention.choice import Choice, Problem, Workload, measure
from engine.errors import ModelLoadError
from engine.kernels.launch_shapes import LaunchKey, LaunchShape, candidates, default_shape, launch_shape, use_shape

pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA and with make test on Linux")

CPU = torch.device("cpu")
SMALL = Workload(decodes=2, context=40, prompt=24)
PROBLEM = Problem(4, 2, 64, 64, torch.float32, torch.float32, 16)
DECODE, PROMPT = (PROBLEM.key(is_prompt=is_prompt) for is_prompt in (False, True))


Rule = Callable[[str], float]
"""Seconds by a candidate's name."""


class Clock:
    """A timer by rule: seconds by the candidate's name, or an exception."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.seen, self.shapes = rule, [], []

    def __call__(self, name: str, work: Callable[[], object], *, capturable: bool) -> float:
        assert capturable == name.startswith("triton")
        self.seen.append(name)
        self.shapes.append(launch_shape(PROMPT if "prompt" in name else DECODE))
        return self.rule(name)


class Passing:
    """Time that passes only where something is built or timed: seconds by rules of the candidate's name."""

    def __init__(self, building: Rule, measuring: Rule) -> None:
        self.building, self.now, self.built = building, 1000.0, []
        self.clock = Clock(self._measured)
        self._measuring = measuring

    def build_kernels(self, name: str, work: Callable[[], object], device: torch.device) -> None:
        self.built.append(name)
        self.now += self.building(name)

    def _measured(self, name: str) -> float:
        assert name in self.built
        self.now += self._measuring(name)
        return 1.0


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Passing]:
    """From its call on, time passes by rules."""

    def begin(building: Rule = lambda name: 0.0, measuring: Rule = lambda name: 0.0) -> Passing:
        time = Passing(building, measuring)
        monkeypatch.setattr(trial, "build_kernels", time.build_kernels)
        monkeypatch.setattr(trial, "monotonic", lambda: time.now)
        return time

    return begin


@pytest.fixture(autouse=True)
def _nothing_is_built(passing: Callable[..., Passing]) -> None:
    """Kernels of a GPU are not run here."""
    passing()


def names(what: str) -> list[str]:
    key = PROMPT if what == "prompt" else DECODE
    return [f"triton {what} {shape}" for shape in candidates(key)]


def test_the_fastest_shapes_and_backend_are_taken() -> None:
    wanted = candidates(DECODE)[2], candidates(PROMPT)[1]
    fast = {f"triton decode {wanted[0]}": 0.5, f"triton prompt {wanted[1]}": 0.25}
    clock = Clock(lambda name: fast.get(name, 1.0))
    found = measure(PROBLEM, CPU, clock, SMALL)
    assert (found.attention, found.decode, found.prompt) == ("triton", *wanted)
    assert clock.seen == ["sdpa decode", *names("decode"), "sdpa prompt", *names("prompt")]
    in_use = dict(zip(clock.seen, map(str, clock.shapes), strict=True))
    assert all(in_use[name] == name.split()[-1] for name in (*names("decode"), *names("prompt")))
    assert found.is_complete
    assert launch_shape(DECODE) == default_shape(DECODE), "a trial leaves nothing behind"


@pytest.mark.parametrize(("sdpa", "wanted"), [(0.9, "triton"), (0.7, "sdpa")])
def test_sdpa_must_be_clearly_faster(sdpa: float, wanted: str) -> None:
    found = measure(PROBLEM, CPU, Clock(lambda name: sdpa if name.startswith("sdpa") else 1.0), SMALL)
    assert found.attention == wanted and (found.decode is None) == (wanted == "sdpa")


def test_what_does_not_run_is_passed_over() -> None:
    def rule(name: str) -> float:
        if name.startswith("sdpa") or name in (names("decode")[0], names("prompt")[-1]):
            raise RuntimeError("out of resources")
        return 1.0

    found = measure(PROBLEM, CPU, Clock(rule), SMALL)
    assert (found.decode, found.prompt) == (candidates(DECODE)[1], candidates(PROMPT)[0])
    only_sdpa = Clock(lambda name: 1.0 if name.startswith("sdpa") else 1 / 0)
    assert measure(PROBLEM, CPU, only_sdpa, SMALL).attention == "sdpa"
    with pytest.raises(ModelLoadError, match="ZeroDivisionError"):
        measure(PROBLEM, CPU, Clock(lambda name: 1 / 0), SMALL)


def test_builds_do_not_count_as_measuring(passing: Callable[..., Passing]) -> None:
    each = trial.BUILDING_SECONDS / (max(len(names("decode")), len(names("prompt"))) + 1)
    time = passing(building=lambda name: each, measuring=lambda name: 0.1)
    assert measure(PROBLEM, CPU, time.clock, SMALL).is_complete
    assert time.clock.seen == ["sdpa decode", *names("decode"), "sdpa prompt", *names("prompt")] == time.built


def test_decoding_and_prompts_have_a_budget_each(passing: Callable[..., Passing]) -> None:
    """What there is no time for is passed over, but for torch's own attention and the default shape."""
    time = passing(measuring=lambda name: 4.0 if "decode" in name else 0.0)
    found = measure(PROBLEM, CPU, time.clock, SMALL)
    assert time.clock.seen == ["sdpa decode", *names("decode")[:2], "sdpa prompt", *names("prompt")]
    assert not found.is_complete and found.decode == default_shape(DECODE)
    time = passing(measuring=lambda name: 100.0)
    assert not measure(PROBLEM, CPU, time.clock, SMALL).is_complete
    assert time.clock.seen == ["sdpa decode", names("decode")[0], "sdpa prompt", names("prompt")[0]]


def test_building_has_a_budget_too(passing: Callable[..., Passing]) -> None:
    time = passing(building=lambda name: 25.0)
    assert not measure(PROBLEM, CPU, time.clock, SMALL).is_complete
    assert time.clock.seen == time.built == ["sdpa decode", *names("decode")[:2], "sdpa prompt", *names("prompt")[:2]]
    time = passing(building=lambda name: 100.0)
    measure(PROBLEM, CPU, time.clock, SMALL)
    assert time.built == ["sdpa decode", names("decode")[0], "sdpa prompt", names("prompt")[0]]


def test_what_lacked_memory_was_not_tried() -> None:
    def rule(name: str) -> float:
        if name == names("decode")[1]:
            raise torch.OutOfMemoryError
        return 1.0

    found = measure(PROBLEM, CPU, Clock(rule), SMALL)
    assert found.attention == "triton" and not found.is_complete


def test_a_choice_is_remembered_for_its_problem_and_device(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "choice.json"
    made = Choice("triton", LaunchShape(16, 64, 4, 3), LaunchShape(128, 64, 8, 3), {"triton decode": 0.5})
    assert choice.recall(path) is None
    choice.remember(path, made)
    assert choice.recall(path) == made
    for broken in ("", "[]", '{"attention": "triton"}', '{"attention": "triton", "decode": {"rows": 1}}'):
        path.write_text(broken)
        assert choice.recall(path) is None
    choice.remember(Path("/proc/nowhere/choice.json"), made)  # cannot be written, and harms nobody
    prints = {choice.fingerprint(problem, device) for problem in (PROBLEM, replace(PROBLEM, softcap=5.0))
              for device in ("one", "other")}  # fmt: skip
    assert len(prints) == 4 and choice.fingerprint(PROBLEM, "one") in prints


def test_a_start_measures_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that the driver is asked about nowhere but in functions replaced here."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    best = candidates(DECODE)[1]
    clock = Clock(lambda name: 0.5 if name == f"triton decode {best}" else 1.0)
    monkeypatch.setattr(choice, "device_timer", lambda device: clock)
    monkeypatch.setattr(choice, "Workload", lambda: SMALL)
    try:
        first = choice.choose_attention(PROBLEM, CPU)
        assert first.decode == best == launch_shape(DECODE) and clock.seen
        clock.seen.clear()
        use_shape(DECODE, None)
        assert choice.choose_attention(PROBLEM, CPU) == first and not clock.seen
        assert launch_shape(DECODE) == best
    finally:
        choice.apply(PROBLEM, Choice("triton"))


def test_what_was_cut_short_serves_and_is_not_remembered(
    passing: Callable[..., Passing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(choice, "Workload", lambda: SMALL)
    time = passing(measuring=lambda name: 7.0)
    monkeypatch.setattr(choice, "device_timer", lambda device: time.clock)
    try:
        assert choice.choose_attention(PROBLEM, CPU).decode == launch_shape(DECODE) == default_shape(DECODE)
        assert "the next start tries again" in caplog.text and not list(tmp_path.rglob("*.json"))
        time = passing(measuring=lambda name: 0.1)
        assert choice.choose_attention(PROBLEM, CPU).is_complete and len(time.clock.seen) > 4
        assert len(list(tmp_path.rglob("*.json"))) == 1
    finally:
        choice.apply(PROBLEM, Choice("triton"))


@pytest.mark.parametrize("group", [1, 3, 4, 7, 12])
@pytest.mark.parametrize("dim_pad", [64, 128, 256])
def test_shapes_hold_whole_groups_of_heads(dim_pad: int, group: int) -> None:
    for is_prompt in (False, True):
        shapes = candidates(LaunchKey(dim_pad, group, is_prompt))
        assert shapes[0] == default_shape(LaunchKey(dim_pad, group, is_prompt)) and len(set(shapes)) == len(shapes) > 2
        for shape in shapes:
            assert shape.rows >= group and shape.rows & (shape.rows - 1) == 0 and shape.tile >= 16


@pytest.mark.parametrize("is_prompt", [False, True])
def test_shapes_for_latents_hold_part_of_their_heads(is_prompt: bool) -> None:
    """The sums of 128 heads, of 512 numbers each, would fill all registers of a processor."""
    problem = Problem(128, 1, 576, 512, torch.bfloat16, torch.bfloat16, 16, is_latent=True)
    shapes = candidates(problem.key(is_prompt=is_prompt))
    assert problem.token_bytes == 576 * 2 and shapes[0] == default_shape(problem.key(is_prompt=is_prompt))
    assert len(set(shapes)) == len(shapes) > 2 and {shape.rows for shape in shapes} <= {16, 32, 64}
    assert problem.key(is_prompt=is_prompt) != replace(problem, is_latent=False).key(is_prompt=is_prompt)


def test_without_memory_to_measure_in_our_kernel_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(choice, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(choice, "make_batch", fail)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    assert choice.choose_attention(PROBLEM, CPU) == Choice("triton")
    assert not list(tmp_path.rglob("*.json")), "the next start would not measure"
