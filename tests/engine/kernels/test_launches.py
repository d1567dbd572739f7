"""Launches go to what Triton itself would have chosen, without asking it each time. No GPU is needed to see that."""

import random
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

triton = pytest.importorskip(
    "triton", reason="needs triton, which comes with torch for CUDA and with make test on Linux"
)

import triton.language as tl  # noqa: E402

from bench.gpu.launches import IdleDriver  # noqa: E402
from engine.kernels import launches  # noqa: E402
from engine.kernels.triton_dependent import await_previous  # noqa: E402

launched: list[tuple[Any, tuple[Any, ...]]] = []


class Watched(IdleDriver):
    """Notes what is launched: the metadata of what was built, and the arguments."""

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Of one kernel."""
        return lambda *arguments: launched.append((metadata, (arguments[:3], *arguments[9:])))


@triton.jit(do_not_specialize=("count",))
def scale_kernel(x, out, size, count, factor, ADD: tl.constexpr, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Something with every kind of argument."""
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    found = tl.load(x + at, mask=at < size, other=0.0) * factor + count
    if ADD:
        found += 1.0
    tl.store(out + at, found, mask=at < size)


@triton.jit
def double_kernel(x, out, TILE: tl.constexpr, DEPENDENT: tl.constexpr = False):  # type: ignore[no-untyped-def]
    """One that takes part in dependent launches."""
    await_previous(DEPENDENT)
    at = tl.arange(0, TILE)
    tl.store(out + at, 2.0 * tl.load(x + at))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(triton.runtime.driver, "_active", Watched())
    launches._built.clear()
    launched.clear()
    yield
    launches._built.clear()


def some_arguments(draw: random.Random) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kind = draw.choice([torch.float32, torch.bfloat16])
    x, out = torch.zeros(64, dtype=kind)[draw.choice([0, 0, 1]) :], torch.zeros(64, dtype=kind)
    size, count = draw.choice([1, 7, 16, 48, 2**33]), draw.choice([1, 2, 2.0, 16])
    options = {"ADD": draw.random() < 0.5, "TILE": 16, "num_warps": draw.choice([1, 2])}
    return (x, out, size, count, draw.choice([1.0, 0.5])), options


def test_launches_are_those_that_triton_chooses(driver: None) -> None:
    draw = random.Random(0)
    for _ in range(300):
        arguments, options = some_arguments(draw)
        grid = draw.choice([(1,), (2, 3)])
        launches.launch(scale_kernel, grid, *arguments, **options)
        scale_kernel[grid](*arguments, **options)
        ours, theirs = launched[-2:]
        assert ours[0] is theirs[0], "another build"
        assert len(ours[1]) == len(theirs[1])
        assert all(a is b or a == b for a, b in zip(ours[1], theirs[1], strict=True)), (ours, theirs)
    assert len({id(metadata) for metadata, _ in launched}) > 20


def test_triton_is_asked_once_for_what_is_alike(driver: None) -> None:
    arguments, options = some_arguments(random.Random(1))
    with mock.patch.object(type(scale_kernel), "run", autospec=True, side_effect=type(scale_kernel).run) as asked:
        for _ in range(3):
            launches.launch(scale_kernel, (1,), *arguments, **options)
        assert asked.call_count == 1 and len(launched) == 3
        with mock.patch.object(launches, "MOST_BUILT", 2):
            for size in range(100, 110):
                launches.launch(scale_kernel, (1,), *arguments[:2], size, *arguments[3:], **options)
        assert asked.call_count == 11 and len(launches._built) <= 2, "what is kept is bounded"


def test_launches_are_dependent_while_they_are_to_be(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, options = some_arguments(random.Random(2))
    seen = []
    for is_on in (False, True, False, True):
        monkeypatch.setattr(launches.dependence, "on", is_on)
        launches.launch(double_kernel, (1,), *arguments[:2], TILE=16, num_warps=1)
        launches.launch(scale_kernel, (1,), *arguments, **options)
        (taking, values), (other, _) = launched[-2:]
        assert (taking.launch_pdl, values[-1]) == (is_on, is_on) and not other.launch_pdl
        seen.append(taking)
    assert seen[0] is seen[2] and seen[1] is seen[3], "both forms are kept"
