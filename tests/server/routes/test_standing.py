"""What is told of models that take no requests now: that it is so, why, and whether to come again."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from server.edge.queues import QueueLimits
from server.fleet.policy import Terms
from tests.clocks import PATIENCE
from tests.server import patient
from tests.server.fakes import FAST_POLICY, RunningServer, Script, set_script, wait_until
from tests.server.routes.test_on_demand import CHAT, GIB, body, policy, post, script, serving, starts, state_of

__all__ = ["script"]


def ready_status(server: RunningServer) -> tuple[int, str]:
    answer = patient.get(f"{server.url}/readyz")
    return answer.status_code, str(answer.json()["status"])


def test_a_model_of_the_start_that_failed_is_tried_again_though_nobody_asks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    """No request comes to a server that is not ready."""
    broken = msgspec.structs.replace(script, log=str(tmp_path / "engine-log"), load_fails="no")
    soon = dataclasses.replace(FAST_POLICY, first_retry_delay=0.3, max_crashes=2)
    with serving(monkeypatch, tmp_path, script, policy=soon, terms={"one": Terms(), "two": Terms()}) as server:
        wait_until(lambda: state_of(server, "two") == "ready")
        set_script(monkeypatch, broken)
        server.server.fleet.handles["two"].kill()
        wait_until(lambda: starts(server, "two") >= 4)
        assert ready_status(server)[0] == 503, "nor is it ready while it is tried"
        set_script(monkeypatch, msgspec.structs.replace(broken, load_fails=""))
        wait_until(lambda: ready_status(server) == (200, "ready"))
        assert state_of(server, "two") == "ready"


@contextmanager
def yielding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> Iterator[RunningServer]:
    """`one` is answering, with room for one, and `two` has waited long enough for its memory."""
    gate = tmp_path / "gate"
    sized = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, weights_bytes=GIB // 2, kv_bytes=GIB // 2,
        holds={7: 1}, gate=str(gate),
    )  # fmt: skip
    options = {"memory_budget": "1.6GiB", "policy": policy(patience=0.1), "load_wait": 0.3}
    with (
        serving(monkeypatch, tmp_path, sized, **options) as server,  # type: ignore[arg-type]
        ThreadPoolExecutor() as pool,
        patient.stream("POST", server.url + CHAT, json=body("one", stream=True, seed=7)) as busy,
    ):
        lines = busy.iter_lines()  # which would be closed if nobody had them
        next(lines)
        other = pool.submit(post, server, **body("two", stream=True))
        try:
            wait_until(lambda: server.handle.is_closed)
            yield server
        finally:
            gate.touch()
            other.result(PATIENCE)


def test_one_that_gives_way_to_another_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with yielding(monkeypatch, tmp_path, script) as server:
        assert state_of(server, "one") == "yielding"
        assert patient.get(f"{server.url}/health").json()["models"]["one"] == "yielding"
        answer = post(server, **body("one"))
        assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
        assert "takes no new requests until another has been loaded" in answer.json()["error"]["message"]
        with patient.stream("POST", server.url + CHAT, json=body("one", stream=True)) as stream:
            assert ": loading: waiting until another model has been loaded" in stream.iter_lines()
    assert server.handle.standing == "stopped"


def test_who_waits_for_a_load_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with yielding(monkeypatch, tmp_path, script) as server:
        page = patient.get(f"{server.url}/metrics").text.splitlines()
        assert 'headrace_requests_waiting{model="two"} 1.0' in page
        assert 'vllm:num_requests_waiting{model_name="two"} 1.0' in page


@pytest.mark.parametrize("asked", [{}, {"timeout": 0.2}])
def test_where_the_servers_time_is_up_during_a_load_it_is_worth_to_come_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, asked: dict[str, float]
) -> None:
    gate = tmp_path / "gate"
    slow = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, gate=str(gate), by_model={"two": {"holds_load": True}}
    )
    with serving(monkeypatch, tmp_path, slow, queues={"two": QueueLimits(request_timeout=0.3)}) as server:
        answer = post(server, **body("two", **asked))
        if asked:
            assert answer.status_code == 408, "the client's own"
        else:
            assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
            assert answer.json()["error"]["code"] == "model_not_ready"
        gate.touch()
        wait_until(lambda: state_of(server, "two") == "ready")
