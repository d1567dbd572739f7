"""Models of a GPU that sleep: what is free meanwhile, who wakes them, and what becomes of one that dies asleep."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.commands.cli import main
from server.fleet.handle import EngineHandle
from server.fleet.needs import PROCESS_BYTES
from server.fleet.policy import FleetPolicy
from tests.clocks import PATIENCE
from tests.server import patient
from tests.server.fakes import FAST_POLICY, RunningServer, Script, wait_until
from tests.server.routes.test_admin import admin, events
from tests.server.routes.test_on_demand import body, policy, post, script, serving, starts, state_of

__all__ = ["script"]
GIB = 2**30


@contextmanager
def on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    script: Script,
    *,
    mib: int = 4096,
    chosen: FleetPolicy = FAST_POLICY,
    **more: Any,
) -> Iterator[tuple[RunningServer, EngineHandle]]:
    """Two models of 1 GiB and a KV cache of as much on a GPU with so much memory; the first of them."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '0, {mib}, {mib}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    fields = {"model_dir": script.model_dir, "token_ids": script.token_ids, "device": "cuda:0"}
    played = Script(**fields | {"weights_bytes": GIB, "kv_bytes": GIB, "log": str(tmp_path / "log")} | more)  # type: ignore[arg-type]
    with serving(monkeypatch, tmp_path, played, policy=chosen) as server:
        one, residency = server.server.fleet.handles["one"], server.server.fleet.residency
        whole = played.weights_bytes + played.kv_bytes + PROCESS_BYTES
        wait_until(lambda: residency.grants.taken("cuda:0") == whole)
        yield server, one


def test_one_that_waits_long_has_the_next_turn_on_its_device_whatever_becomes_of_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    """What is decided of the CPU lets nobody in to a model of the GPU that is closed for another."""
    gate = tmp_path / "gate"
    held = {"holds": {7: 1}, "gate": str(gate)}
    with (
        on_a_gpu(monkeypatch, tmp_path, script, chosen=policy(patience=0.1), **held) as (server, one),
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(post, server, **body("one", seed=7))
        try:
            wait_until(lambda: len(one.holders.active) == 1)
            second = pool.submit(post, server, **body("two"))
            wait_until(lambda: one.is_closed)
            third = pool.submit(post, server, **body("one", seed=8))
            wait_until(lambda: len(one.holders.waiting) == 1)
            changes: list[bool] = []
            with monkeypatch.context() as watching:
                watching.setattr(one, "_on_change", lambda handle: changes.append(handle.is_closed))
                for _ in range(3):
                    server.call(server.server.fleet.residency._move_all)
            assert not changes and one.is_closed and len(one.holders.active) == len(one.holders.waiting) == 1
        finally:  # else nobody could be waited for
            gate.touch()
        assert [answer.result(PATIENCE).status_code for answer in (first, second, third)] == [200] * 3
        assert starts(server, "two") == 1 and starts(server, "one") == 2


def test_a_sleeper_makes_room_and_is_woken_by_who_asks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with on_a_gpu(monkeypatch, tmp_path, script) as (server, one):
        residency, pid = server.server.fleet.residency, one.pid
        assert residency.grants.taken("cpu") == 0
        for _ in range(2):
            assert admin(server, "one/sleep").json()["state"] == "asleep"
        assert residency.grants.taken("cuda:0") == PROCESS_BYTES and residency.grants.taken("cpu") == GIB
        assert patient.get(f"{server.url}/readyz").status_code == 200
        assert post(server, **body("two")).status_code == 200, "there is room for it now"
        assert state_of(server, "one") == "asleep" and one.pid == pid
        assert post(server, **body("one")).status_code == 200
        assert (state_of(server, "one"), state_of(server, "two")) == ("ready", "unloaded")
        assert one.pid == pid and starts(server, "one") == 1 and len(server.events("wake")) == 1
        assert residency.grants.taken("cuda:0") == 2 * GIB + PROCESS_BYTES and residency.grants.taken("cpu") == 0
        told = events(admin(server, "one/sleep", json={"stream": True}).text)
        assert [event["state"] for event in told] == ["unloading", "asleep"]
        assert admin(server, "one/load").json()["state"] == "ready" and len(server.events("wake")) == 2
        assert main(["sleep", "one", "--url", server.url]) == 0 and state_of(server, "one") == "asleep"
        assert admin(server, "one/unload").json()["state"] == "unloaded"
        assert residency.grants.taken("cuda:0") == residency.grants.taken("cpu") == 0 and pid is not None
        assert not psutil.pid_exists(pid)


def test_a_sleeper_is_ended_where_even_what_it_keeps_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with on_a_gpu(monkeypatch, tmp_path, script, mib=2800) as (server, one):
        assert admin(server, "one/sleep").json()["state"] == "asleep"
        assert post(server, **body("two")).status_code == 200
        wait_until(lambda: state_of(server, "one") == "unloaded")
        assert one.pid is None
        assert server.server.fleet.residency.grants.taken("cpu") == 0


def test_one_that_dies_while_it_falls_asleep_is_unloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    """As where the host lacks the memory after all."""
    with on_a_gpu(monkeypatch, tmp_path, script, dies_falling_asleep=True) as (server, one):
        assert admin(server, "one/sleep").json()["state"] == "unloaded" and one.pid is None
        residency = server.server.fleet.residency
        assert residency.grants.taken("cuda:0") == residency.grants.taken("cpu") == 0
        assert post(server, **body("one")).status_code == 200 and starts(server, "one") == 2


def test_one_that_dies_asleep_is_loaded_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with on_a_gpu(monkeypatch, tmp_path, script) as (server, one):
        assert admin(server, "one/sleep").json()["state"] == "asleep" and one.pid is not None
        os.kill(one.pid, signal.SIGKILL)
        wait_until(lambda: state_of(server, "one") == "unloaded")
        residency = server.server.fleet.residency
        assert residency.grants.taken("cuda:0") == residency.grants.taken("cpu") == 0
        assert post(server, **body("one")).status_code == 200 and starts(server, "one") == 2


def test_one_that_dies_while_it_wakes_is_started_again_for_who_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with on_a_gpu(monkeypatch, tmp_path, script, holds_wake=True) as (server, one):
        assert admin(server, "one/sleep").json()["state"] == "asleep"
        asked = body("one", stream=True)
        with patient.stream("POST", f"{server.url}/v1/chat/completions", json=asked) as answer:
            lines = answer.iter_lines()
            assert any("waking up" in line for line in lines)
            assert one.pid is not None
            os.kill(one.pid, signal.SIGKILL)
            rest = "\n".join(lines)
        assert "[DONE]" in rest and '"error"' not in rest
        assert starts(server, "one") == 2 and server.server.fleet.residency.grants.taken("cpu") == 0


def test_waking_can_be_called_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with on_a_gpu(monkeypatch, tmp_path, script, holds_wake=True) as (server, one):
        assert admin(server, "one/sleep").json()["state"] == "asleep"
        pid = one.pid
        with patient.stream("POST", f"{server.url}/admin/models/one/load", json={"stream": True}) as answer:
            assert any("waking up" in line for line in answer.iter_lines())
        wait_until(lambda: not one.holders.waiting)
        assert admin(server, "one/unload").json()["state"] == "unloaded"
        assert pid is not None and not psutil.pid_exists(pid)
        assert server.server.fleet.residency.grants.taken("cuda:0") == 0


def test_what_cannot_sleep_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with on_a_gpu(monkeypatch, tmp_path, script, weights_bytes=10**15, mib=10**10) as (server, _):
        refused = admin(server, "one/sleep")
        assert refused.status_code == 409 and refused.json()["error"]["code"] == "no_room_to_sleep"
        assert "931322.57 GiB of weights" in refused.json()["error"]["message"] and state_of(server, "one") == "ready"
        unready = admin(server, "two/sleep")
        assert unready.status_code == 409 and unready.json()["error"]["code"] == "model_not_ready"
        assert "two is unloaded" in unready.json()["error"]["message"]


def test_on_a_cpu_sleeping_is_unloading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with serving(monkeypatch, tmp_path, script) as server:
        assert admin(server, "one/sleep").json()["state"] == "unloaded"
        assert post(server, **body("one")).status_code == 200
