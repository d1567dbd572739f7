"""What one request may cost another, and what it spares it: on the real model, in bf16 where the CPU computes in it."""

import time
from pathlib import Path

import pytest

from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams


@pytest.fixture(scope="module")
def engine(smollm2_dir: Path) -> Engine:
    config = EngineConfig(name="smollm2", source=str(smollm2_dir), device="cpu", memory="1GiB")
    return build_engine(config, lambda *_: None)[0]


def prompt(length: int, salt: int) -> list[int]:
    return [(salt * 7919 + i * 31) % 40_000 + 100 for i in range(length)]


def add(engine: Engine, request_id: int, token_ids: list[int], max_tokens: int) -> None:
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    engine.add(AddRequest(request_id, token_ids, params))


def first_token_seconds(engine: Engine, request_id: int, token_ids: list[int]) -> float:
    started = time.perf_counter()
    add(engine, request_id, token_ids, 1)
    while not any(output.token_ids for output in engine.step()):
        pass
    return time.perf_counter() - started


def step_seconds(engine: Engine) -> float:
    started = time.perf_counter()
    engine.step()
    return time.perf_counter() - started


@pytest.mark.slow
def test_a_shared_prefix_is_computed_once(engine: Engine) -> None:
    """The second request with the same 2,000 tokens has at most a tenth of the first one's time to first token."""
    first_token_seconds(engine, 1, prompt(64, salt=1))  # the machine's own first time
    shared = prompt(2000, salt=2)
    cold = first_token_seconds(engine, 2, [*shared, 5, 6, 7])
    warm = min(first_token_seconds(engine, 3 + i, [*shared, 8 + i, 9, 10]) for i in range(3))
    assert warm <= cold / 10, f"{warm:.3f} s after {cold:.3f} s"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_long_prompt_does_not_freeze_the_others(engine: Engine) -> None:
    """While 8 streams decode, a 6,000-token prompt at most triples the 99th percentile of their inter-token latency."""
    for stream in range(8):
        add(engine, 100 + stream, prompt(32, salt=10 + stream), 2000)
    for _ in range(40):
        engine.step()
    before = sorted(step_seconds(engine) for _ in range(150))
    add(engine, 200, prompt(6000, salt=3), 1)
    during = []
    while engine.stats().num_running < 9:
        during.append(step_seconds(engine))
    while engine.stats().num_running == 9:
        during.append(step_seconds(engine))
    engine.abort([100 + stream for stream in range(8)])
    engine.step()
    during.sort()
    p99_before, p99_during = before[int(0.99 * len(before))], during[int(0.99 * len(during))]
    assert p99_during <= 3 * p99_before, f"{p99_during * 1e3:.0f} ms after {p99_before * 1e3:.0f} ms"
    assert len(during) > 10
