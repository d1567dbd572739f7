"""The queue of each model and the time of each request, as clients of the real server see them."""

import concurrent.futures
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.edge.limits import Limits
from server.edge.queues import QueueLimits
from tests.clocks import PATIENCE
from tests.server import patient
from tests.server.fakes import RunningServer, Script, wait_until
from tests.server.routes.test_keys import ask, error, keyed, write_keys
from tests.server.routes.test_on_demand import CHAT, MESSAGES, post, script, serving

__all__ = ["script"]
HELD = 7
"""A seed whose requests get no token before the gate opens; those of `HELD_LATER` get two."""
HELD_LATER = 8


@pytest.fixture
def held(script: Script, tmp_path: Path) -> Script:
    return Script(
        model_dir=script.model_dir, token_ids=script.token_ids, gate=str(tmp_path / "gate"),
        holds={HELD: 0, HELD_LATER: 2}, context=100_000,
    )  # fmt: skip


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, "max_tokens": 4} | fields


@contextlib.contextmanager
def asked(server: RunningServer, *bodies: dict[str, Any], key: str = "x") -> Iterator[list[Any]]:
    """Requests that are under way; their answers come when the block ends."""
    headers = {"Authorization": f"Bearer {key}"}
    before = len(server.events("add"))
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        running = [pool.submit(patient.post, server.url + CHAT, json=one, headers=headers) for one in bodies]
        wait_until(lambda: len(server.events("add")) >= before + len(bodies))
        yield running


def open_gate(tmp_path: Path) -> None:
    (tmp_path / "gate").touch()


def is_idle(server: RunningServer) -> bool:
    handles = server.server.fleet.handles.values()
    clients = [handle.client for handle in handles if handle.client is not None]
    return server.server.admission.in_flight == 0 and all(not client.num_requests for client in clients)


def test_answers_that_wait_for_one_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: Script) -> None:
    with serving(monkeypatch, tmp_path, held, queues={"one": QueueLimits(max_queue=3)}) as server:
        with asked(server, body(seed=HELD, n=2), body(seed=HELD)):
            full = post(server, **body())
            assert full.status_code == 503 and error(full)["code"] == "overloaded"
            assert "one" in error(full)["message"] and 1 <= int(full.headers["retry-after"]) <= 60
            assert post(server, **body(model="two")).status_code == 200
            assert patient.get(f"{server.url}/readyz").json() == {"status": "full"}
            assert patient.get(f"{server.url}/health").status_code == 200
            open_gate(tmp_path)
        assert post(server, **body()).status_code == 200
        wait_until(lambda: is_idle(server))
        assert patient.get(f"{server.url}/readyz").status_code == 200


def test_what_has_begun_waits_no_longer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: Script) -> None:
    with serving(monkeypatch, tmp_path, held, queues={"one": QueueLimits(max_queue=1)}) as server:
        for _ in range(3):
            streams = patient.stream("POST", server.url + CHAT, json=body(seed=HELD_LATER, stream=True))
            with streams as answer:
                pieces = answer.iter_text()
                while '"content"' not in next(pieces):
                    pass
                assert post(server, **body()).status_code == 200
        wait_until(lambda: is_idle(server))


def test_prompt_tokens_that_wait_for_one_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: Script) -> None:
    long = [{"role": "user", "content": "word " * 1000}]
    with serving(monkeypatch, tmp_path, held, queues={"one": QueueLimits(max_queue_tokens=1500)}) as server:
        with asked(server, body(seed=HELD, messages=long)):
            for stream in (False, True):
                full = post(server, **body(messages=long, stream=stream))
                assert full.status_code == 503 and "1500 tokens" in error(full)["message"]
                assert "retry-after" in full.headers
            assert post(server, **body()).status_code == 200
            open_gate(tmp_path)
        assert post(server, **body(messages=long)).status_code == 200
        wait_until(lambda: is_idle(server))


@pytest.mark.parametrize("stream", [False, True])
def test_a_wait_that_is_too_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: Script, stream: bool) -> None:
    limits = QueueLimits(queue_timeout=1000.0, request_timeout=5000.0)
    with serving(monkeypatch, tmp_path, held, queues={"one": limits}) as server:
        with asked(server, body(seed=HELD, n=2, stream=stream)) as (running,):
            server.pass_time(1001)
            answer = running.result()
        assert answer.status_code == 503 and error(answer)["code"] == "queue_timeout"
        assert "1000 s" in error(answer)["message"] and int(answer.headers["retry-after"]) >= 1
        wait_until(lambda: is_idle(server) and server.events("abort"))
        # What has begun may take longer.
        with patient.stream("POST", server.url + CHAT, json=body(seed=HELD_LATER, stream=True)) as streamed:
            pieces = streamed.iter_text()
            seen = ""
            while "capital" not in seen:
                seen += next(pieces)
            server.pass_time(1001)
            open_gate(tmp_path)
            assert "[DONE]" in "".join(pieces) and "error" not in seen


@pytest.mark.parametrize("asks", [False, True])
def test_a_request_that_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: Script, asks: bool
) -> None:
    """Whole answers and streams without a token get an error, streams that have begun an error event."""
    limits, fields = (
        (QueueLimits(request_timeout=9000.0), {"timeout": 1000.0})
        if asks
        else (QueueLimits(request_timeout=1000.0), {})
    )
    with serving(monkeypatch, tmp_path, held, queues={"one": limits}) as server:
        for seed, stream in ((HELD, False), (HELD_LATER, False), (HELD, True)):
            with asked(server, body(seed=seed, stream=stream, **fields)) as (running,):
                server.pass_time(1001)
                answer = running.result()
            assert answer.status_code == (408 if asks else 504) and answer.headers["x-should-retry"] == "false"
            assert error(answer)["code"] == "deadline_exceeded" and "1000 s" in error(answer)["message"]
            assert error(answer)["param"] == ("timeout" if asks else None)
        with patient.stream(
            "POST", server.url + CHAT, json=body(seed=HELD_LATER, n=4, stream=True, **fields)
        ) as streamed:
            pieces = streamed.iter_text()
            seen = ""
            while "capital" not in seen:
                seen += next(pieces)
            server.pass_time(1001)
            seen += "".join(pieces)
        last, done, rest = seen.split("\n\n")[-3:]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
        assert (done, rest) == ("data: [DONE]", "")
        wait_until(lambda: is_idle(server))
        added = {entry["id"] for entry in server.events("add")}
        wait_until(lambda: added == {number for entry in server.events("abort") for number in entry["ids"]})


def test_openai_sees_why_a_stream_has_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: Script) -> None:
    with serving(monkeypatch, tmp_path, held) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="one", messages=MESSAGES, seed=HELD_LATER, stream=True, extra_body={"timeout": 1000}  # type: ignore[arg-type]
        )  # fmt: skip
        next(stream)
        server.pass_time(1001)
        with pytest.raises(openai.APIError, match="not complete after 1000 s"):
            list(stream)


@pytest.mark.parametrize("long", [False, True])
def test_time_passes_while_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: Script, long: bool
) -> None:
    """Also for bodies that are read in a process of their own."""
    slow = Script(
        model_dir=held.model_dir, token_ids=held.token_ids, gate=held.gate, by_model={"two": {"holds_load": True}},
        context=10**6,
    )  # fmt: skip
    messages = [{"role": "user", "content": "a " * 30_000}] if long else MESSAGES
    with serving(monkeypatch, tmp_path, slow, load_wait=10_000.0) as server:
        fields = body(model="two", timeout=1000, messages=messages)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(patient.post, server.url + CHAT, json=fields)
            wait_until(lambda: server.server.fleet.handles["two"].holders.waiting)
            server.pass_time(1001)
            assert running.result().status_code == 408
        assert not server.server.fleet.handles["two"].holders.waiting
        with patient.stream("POST", server.url + CHAT, json=fields | {"stream": True}) as streamed:
            assert streamed.status_code == 200
            wait_until(lambda: server.server.fleet.handles["two"].holders.waiting)
            server.pass_time(1001)
            assert "deadline_exceeded" in streamed.read().decode()


@pytest.mark.parametrize("value", [0, -1, "ten", 1e9, True])
def test_a_timeout_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, value: Any) -> None:
    with serving(monkeypatch, tmp_path, script) as server:
        refused = post(server, **body(timeout=value))
        assert refused.status_code == 400 and error(refused)["param"] == "timeout"
        assert post(server, **body(timeout=None)).status_code == 200


def test_a_burst_of_one_key_leaves_room_for_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: Script
) -> None:
    """At the door, in the queue of a model and in the whole server."""
    for more in ({"queues": {"one": QueueLimits(max_queue=8)}}, {"limits": Limits(max_requests=8)}):
        directory = tmp_path / next(iter(more))
        directory.mkdir()
        gate = directory / "gate"
        here = Script(model_dir=held.model_dir, token_ids=held.token_ids, gate=str(gate), holds=held.holds)
        with keyed(monkeypatch, directory, here, {"greedy": {}, "modest": {}}, **more) as server:
            with asked(server, *[body(seed=HELD)] * 4, key="greedy"):
                for _ in range(3):
                    refused = ask(server, "greedy")
                    assert refused.status_code == 503 and "half" in error(refused)["message"]
                assert ask(server, "modest").status_code == 200
                with asked(server, *[body(seed=HELD)] * 2, key="modest"):
                    assert ask(server, "modest").status_code == 503
                    gate.touch()
            wait_until(lambda: is_idle(server))


def test_a_key_that_asks_alone_has_the_whole_queue(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: Script
) -> None:
    """Keys of operators and for metrics leave it all to the one that asks, until there is another."""
    keys: dict[str, dict[str, Any]] = {"team": {}, "prom": {"rights": ["metrics"]}, "ops": {"rights": ["admin"]}}
    for name, more in (
        ("queue", {"queues": {"one": QueueLimits(max_queue=6)}}),
        ("all", {"limits": Limits(max_requests=6)}),
    ):
        directory = tmp_path / name
        directory.mkdir()
        gate = directory / "gate"
        here = Script(model_dir=held.model_dir, token_ids=held.token_ids, gate=str(gate), holds=held.holds)
        with keyed(monkeypatch, directory, here, keys, admin_keys=("chief",), **more) as server:
            with asked(server, *[body(seed=HELD)] * 6, key="team"):
                full = ask(server, "team")
                assert full.status_code == 503 and "half" not in error(full)["message"]
                write_keys(directory / "keys.yaml", **keys, second={})
                wait_until(lambda: server.server.keys.are_several())
                assert "half" in error(ask(server, "team"))["message"]
                gate.touch()
            wait_until(lambda: is_idle(server))
            gate.unlink()
            with asked(server, *[body(seed=HELD)] * 3, key="team"):
                assert ask(server, "team").status_code == 503 and ask(server, "second").status_code == 200
                gate.touch()
            wait_until(lambda: is_idle(server))


def test_refusals_of_a_full_server_are_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: Script) -> None:
    """How quick is measured elsewhere; here, that none waits: for the engine, for those before it, for a time."""
    with (
        serving(monkeypatch, tmp_path, held, queues={"one": QueueLimits(max_queue=1)}) as server,
        asked(server, body(seed=HELD)),
        httpx.Client(verify=patient.NO_CERTIFICATES, timeout=PATIENCE) as client,
    ):
        seconds = []
        with server.standing_time():
            for _ in range(50):
                began = time.process_time()
                assert client.post(server.url + CHAT, json=body()).status_code == 503
                seconds.append(time.process_time() - began)
        assert not server.events("abort") and len(server.events("add")) == 1
        assert min(seconds) < 0.05
        open_gate(tmp_path)
