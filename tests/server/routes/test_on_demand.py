"""Models that are loaded because a request names them: what the request sees meanwhile, and who shares what."""

import asyncio
import dataclasses
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine.config import EngineConfig
from server.commands.top import parse_metrics
from server.fleet import wishes
from server.fleet.policy import ModelState, Residence, Terms
from server.routes import loading
from tests.clocks import PATIENCE
from tests.server import patient
from tests.server.fakes import (
    FAKE_COMMAND,
    FAST_POLICY,
    NEVER,
    RunningServer,
    Script,
    engine_config,
    running_server,
    wait_until,
)

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
TEXT = "The capital of France"
GIB = 2**30
ON_DEMAND = Terms(residence=Residence(load="on_demand"))


def body(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": MESSAGES, "max_tokens": 4, **more}


@pytest.fixture
def script(smollm2_dir: Path) -> Script:
    return Script(model_dir=str(smollm2_dir), token_ids=[504, 3575, 282, 4649])


@contextmanager
def serving(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    script: Script,
    names: str = "one two",
    at_once: float = 0.0,
    **more: Any,
) -> Iterator[RunningServer]:
    """The first of `names` is loaded at start, the others are not. Streams of these begin `at_once`: after 0 s."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "AT_ONCE_SECONDS", at_once)
    models = tuple(dataclasses.replace(engine_config(name), source=f"random://{name}") for name in names.split())
    given = {"terms": {config.name: ON_DEMAND for config in models[1:]}, "models": models} | more
    with running_server(monkeypatch, tmp_path, script, **given) as server:
        yield server


def post(server: RunningServer, path: str = CHAT, **fields: Any) -> httpx.Response:
    return patient.post(server.url + path, json=fields)


def starts(server: RunningServer, name: str) -> int:
    return sum(entry["model"] == name for entry in server.events("start"))


def state_of(server: RunningServer, name: str) -> str:
    return str(patient.get(f"{server.url}/v1/models/{name}").json()["state"])


def text_of(stream: str) -> str:
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_a_request_loads_the_model_that_it_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with serving(monkeypatch, tmp_path, script) as server:
        assert patient.get(f"{server.url}/health").json()["models"] == {"one": "ready", "two": "unloaded"}
        assert starts(server, "two") == 0 and state_of(server, "two") == "unloaded"
        assert post(server, **body("two")).json()["choices"][0]["message"]["content"] == TEXT
        assert state_of(server, "two") == "ready" and starts(server, "two") == 1
        assert post(server, "/tokenize", model="two", prompt="x").status_code == 200
        unknown = post(server, **body("three"))
        assert unknown.status_code == 404 and "/v1/models" in unknown.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions", CHAT])
def test_every_route_loads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, path: str) -> None:
    given = {"messages": MESSAGES} if path == CHAT else {"prompt": "x"}
    long = {"messages": [{"role": "user", "content": "a " * 30_000}]} if path == CHAT else {"prompt": "a " * 30_000}
    long_context = Script(model_dir=script.model_dir, token_ids=script.token_ids, context=10**6)
    with serving(monkeypatch, tmp_path, long_context, "one two three") as server:
        limit = {} if path == "/tokenize" else {"max_tokens": 2}
        assert post(server, path, model="two", **given, **limit).status_code == 200
        assert post(server, path, model="three", **long, **limit).status_code == 200
        assert starts(server, "two") == starts(server, "three") == 1


def test_a_stream_has_headers_at_once_and_says_how_far_the_load_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    gate = tmp_path / "gate"
    slow = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, gate=str(gate), by_model={"two": {"holds_load": True}},
        relaxed=["/a"],
    )  # fmt: skip
    with serving(monkeypatch, tmp_path, slow) as server:
        with patient.stream("POST", server.url + CHAT, json=body("two", stream=True)) as answer:
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
            pieces = answer.iter_text()
            seen = next(pieces)
            while "reading weights, 80 %" not in seen:
                seen += next(pieces)
            assert all(line.startswith(": loading: ") for line in seen.splitlines() if line), seen
            assert state_of(server, "two") == "loading"
            gate.touch()
            seen += "".join(pieces)
        assert text_of(seen) == TEXT and seen.endswith("data: [DONE]\n\n")
        # What would be in the headers is said all the same.
        assert ": x-headrace-relaxed: /a\n" in seen
        # One that is refused says so where it can.
        server.call(lambda: server.server.fleet.residency.end(server.server.fleet.handles["two"]))
        wait_until(lambda: state_of(server, "two") == "unloaded")
        refused = post(server, **body("two", stream=True, max_tokens=10**9))
        assert refused.status_code == 200 and "context_length_exceeded" in refused.text
        assert refused.text.endswith("data: [DONE]\n\n")


def test_a_whole_answer_waits_up_to_its_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    gate = tmp_path / "gate"
    slow = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, gate=str(gate), by_model={"two": {"holds_load": True}}
    )
    with serving(monkeypatch, tmp_path, slow, load_wait=0.3) as server:
        post(server, **body("two"))
        handle = server.server.fleet.handles["two"]
        wait_until(lambda: handle.progress is not None and handle.progress.fraction == 0.8)
        for path, given in ((CHAT, body("two")), ("/tokenize", {"model": "two", "prompt": "x"})):
            late = post(server, path, **given)
            assert late.status_code == 503 and int(late.headers["retry-after"]) > 0
            error = late.json()["error"]
            assert error["code"] == "model_not_ready" and "is loading (reading weights, 80 %)" in error["message"]
        gate.touch()
        wait_until(lambda: state_of(server, "two") == "ready")
        assert post(server, **body("two")).status_code == 200 and starts(server, "two") == 1


def test_twenty_requests_share_a_load_and_whoever_leaves_ends_only_the_own_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    gate = tmp_path / "gate"
    slow = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, gate=str(gate), by_model={"two": {"holds_load": True}}
    )

    async def scenario(server: RunningServer) -> None:
        handle = server.server.fleet.handles["two"]
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            tasks = [
                asyncio.create_task(client.post(CHAT, json=body("two", stream=bool(number % 2))))
                for number in range(20)
            ]
            while len(handle.holders.waiting) < 20:
                await asyncio.sleep(0.01)
            for task in tasks[:5]:
                task.cancel()
            while len(handle.holders.waiting) > 15:
                await asyncio.sleep(0.01)
            gate.touch()
            answers = await asyncio.gather(*tasks[5:])
        texts = [
            text_of(answer.text) if answer.text.startswith(":") else answer.json()["choices"][0]["message"]["content"]
            for answer in answers
        ]
        assert texts == [TEXT] * 15

    with serving(monkeypatch, tmp_path, slow) as server:
        asyncio.run(scenario(server))
        assert starts(server, "two") == 1 and len(server.events("add")) == 15
        assert not server.server.fleet.handles["two"].holders.active and not server.server.admission.in_flight


def test_nobody_waits_for_a_load_that_all_have_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    """It goes on, for the next one who asks."""
    gate = tmp_path / "gate"
    slow = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, gate=str(gate), by_model={"two": {"holds_load": True}}
    )
    with serving(monkeypatch, tmp_path, slow) as server:
        with patient.stream("POST", server.url + CHAT, json=body("two", stream=True)) as answer:
            pieces = answer.iter_text()
            while "reading weights" not in next(pieces):
                pass
        wait_until(lambda: not server.server.fleet.handles["two"].holders.waiting)
        gate.touch()
        wait_until(lambda: state_of(server, "two") == "ready")
        assert not server.events("add")


def test_a_load_that_failed_says_why_at_once_until_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    fails = {"load_fails": "/srv/models/two/config.json is wrong:\n    no model_type (at 0x7f0012345678)\x1b[2J"}
    broken = Script(model_dir=script.model_dir, token_ids=script.token_ids, by_model={"two": fails})
    pauses = dataclasses.replace(FAST_POLICY, first_retry_delay=NEVER, max_retry_delay=3 * NEVER)
    with serving(monkeypatch, tmp_path, broken, policy=pauses) as server:
        handle = server.server.fleet.handles["two"]
        streamed = post(server, **body("two", stream=True))
        assert streamed.status_code == 200 and '"model_not_ready"' in streamed.text
        for _ in range(3):
            answer = post(server, **body("two"))
            assert answer.status_code == 503 and "retry-after" not in answer.headers
            assert answer.headers["x-should-retry"] == "false", "no client of OpenAI's asks again and again"
            message = answer.json()["error"]["message"]
            assert message == "The model two could not be loaded: config.json is wrong: no model_type (at 0x...)?[2J"
        assert starts(server, "two") == 1 and state_of(server, "two") == "failed"
        assert patient.get(f"{server.url}/health").status_code == 200  # who asked for it is told, the server is well
        first = handle.failures.retry_at
        server.call(lambda: setattr(handle.failures, "retry_at", 0.0))  # the pause is over
        assert post(server, **body("two")).status_code == 503 and starts(server, "two") == 2
        assert handle.failures.retry_at - first > NEVER / 2  # the next pause is longer
        assert post(server, **body("one")).status_code == 200


def test_what_cannot_be_loaded_ends_nobody_and_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    """Files tell it, so no memory is asked for. Whole or streamed, it has a status; the log says it once."""
    (tmp_path / "empty").mkdir()
    sources = {
        "gone": (str(tmp_path / "gone"), "its source does not exist"),
        "empty": (str(tmp_path / "empty"), "its source has no config.json"),
        "odd": ("no/such/thing", "'its source' is neither a directory nor a file here, nor a hub id"),
        "absent": ("package://no_such_package/file.gguf", "the Python package no_such_package is not installed"),
        "unsplit": ("random://olmoe?num_attention_heads=4", "models of the type olmoe are not divided here"),
    }
    sized = Script(model_dir=script.model_dir, token_ids=script.token_ids, weights_bytes=GIB // 2, kv_bytes=GIB // 2)
    models: Any = (
        dataclasses.replace(engine_config("one"), source="random://one"),
        *(
            EngineConfig(name=name, source=source, tensor_parallel=2 if name == "unsplit" else 1)
            for name, (source, _) in sources.items()
        ),
    )
    given: dict[str, Any] = {"models": models, "terms": dict.fromkeys(sources, ON_DEMAND), "at_once": PATIENCE}
    with serving(monkeypatch, tmp_path, sized, memory_budget="1.6GiB", policy=policy(), **given) as server:
        first = server.server.fleet.handles["one"].pid
        for name, (source, said) in sources.items():
            for stream in (False, True, False):
                answer = post(server, **body(name, stream=stream))
                message = answer.json()["error"]["message"]
                assert answer.status_code == 503 and message.startswith(f"The model {name} could not be loaded: ")
                assert said in message and str(tmp_path) not in message
            assert server.console.getvalue().count(source) <= 1 and state_of(server, name) == "failed"
        assert server.server.fleet.handles["one"].pid == first and state_of(server, "one") == "ready"
        assert post(server, **body("one")).status_code == 200


def test_one_that_is_downloaded_takes_nobodys_place_until_it_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    gate = tmp_path / "gate"
    fails = {"load_fails": "the hub does not have org/three"}
    sized = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, weights_bytes=GIB // 2, kv_bytes=GIB // 2,
        gate=str(gate), by_model={"two": {"holds_load": True}, "three": fails},
    )  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    models: Any = (
        dataclasses.replace(engine_config("one"), source="random://one"),
        *(EngineConfig(name=name, source=f"org/{name}") for name in ("two", "three")),
    )
    fetching = policy(fetch_command=(*FAKE_COMMAND, "fetch"), first_retry_delay=NEVER)
    given: dict[str, Any] = {"models": models, "terms": {"two": ON_DEMAND, "three": ON_DEMAND}, "policy": fetching}
    with serving(monkeypatch, tmp_path, sized, memory_budget="1.6GiB", **given) as server:
        handles = server.server.fleet.handles
        with patient.stream("POST", server.url + CHAT, json=body("two", stream=True)) as answer:
            pieces = answer.iter_text()
            seen = next(pieces)
            while "loading: downloading, 80 %" not in seen:
                seen += next(pieces)
            # Nothing is ended for it meanwhile, and one that cannot be downloaded is told so at once.
            assert post(server, **body("one")).status_code == 200 and state_of(server, "two") == "loading"
            for _ in range(2):
                assert "the hub does not have its source" in post(server, **body("three")).json()["error"]["message"]
            assert server.events("fetch") and state_of(server, "one") == "ready"
            gate.touch()
            seen += "".join(pieces)
        assert text_of(seen) == TEXT and (state_of(server, "one"), state_of(server, "two")) == ("unloaded", "ready")
        assert [entry["model"] for entry in server.events("fetch")] == ["two", "three"], (
            "a failure is not tried at once"
        )
        assert handles["three"].failures.is_too_soon


def test_a_death_while_loading_is_told_to_all_who_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    slow = Script(model_dir=script.model_dir, token_ids=script.token_ids, by_model={"two": {"holds_load": True}})

    async def scenario(server: RunningServer) -> list[httpx.Response]:
        handle = server.server.fleet.handles["two"]
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            tasks = [
                asyncio.create_task(client.post(CHAT, json=body("two", stream=stream)))
                for stream in (False, True, False)
            ]
            while len(handle.holders.waiting) < 3 or handle.progress is None:
                await asyncio.sleep(0.01)
            assert handle.pid is not None
            os.kill(handle.pid, signal.SIGKILL)
            return list(await asyncio.gather(*tasks))

    with serving(monkeypatch, tmp_path, slow) as server:
        for answer in asyncio.run(scenario(server)):
            assert "was killed by SIGKILL, perhaps for want of memory while loading" in answer.text
        assert post(server, **body("one")).status_code == 200
        assert not server.server.fleet.handles["two"].holders.waiting


def test_the_end_of_the_server_is_told_to_those_who_wait_for_a_load(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    slow = Script(model_dir=script.model_dir, token_ids=script.token_ids, by_model={"two": {"holds_load": True}})

    async def scenario(server: RunningServer) -> list[httpx.Response]:
        handle = server.server.fleet.handles["two"]
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            tasks = [
                asyncio.create_task(client.post(CHAT, json=body("two", stream=stream))) for stream in (False, True)
            ]
            while len(handle.holders.waiting) < 2:
                await asyncio.sleep(0.01)
            server.loop.call_soon_threadsafe(server.server.stop)
            return list(await asyncio.gather(*tasks))

    with serving(monkeypatch, tmp_path, slow) as server:
        whole, streamed = asyncio.run(scenario(server))
        assert whole.status_code == 503 and "shutting down" in whole.text
        assert "shutting down" in streamed.text and streamed.text.endswith("data: [DONE]\n\n")


def test_one_that_is_unloaded_while_its_files_are_looked_at_is_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    looking, seen = threading.Event(), threading.Event()

    def look(config: EngineConfig) -> bool:
        looking.set()
        assert seen.wait(PATIENCE)
        return config.name == "two"

    monkeypatch.setattr(wishes, "is_to_download", look)
    fetching = policy(fetch_command=(*FAKE_COMMAND, "fetch"))
    seen.set()
    with serving(monkeypatch, tmp_path, script, policy=fetching) as server:
        seen.clear()
        looking.clear()
        assert post(server, **body("two", timeout=0.2)).status_code == 408 and looking.wait(PATIENCE)
        assert patient.post(f"{server.url}/admin/models/two/unload").json()["state"] == "unloaded"
        seen.set()
        assert post(server, **body("one")).status_code == 200
        assert state_of(server, "two") == "unloaded" and not server.events("fetch")
        assert post(server, **body("two")).status_code == 200 and len(server.events("fetch")) == 1


@pytest.mark.parametrize(("patience", "then"), [(NEVER, "loading"), (0.2, "unloaded")])
def test_for_one_that_nobody_waits_for_any_more_nothing_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, patience: float, then: str
) -> None:
    """While it waits for memory. Who comes again soon finds its place kept."""
    sized = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, weights_bytes=GIB // 2, kv_bytes=GIB // 2,
        holds={7: 1}, gate=str(tmp_path / "gate"),
    )  # fmt: skip
    chosen = policy(patience=patience)
    with serving(monkeypatch, tmp_path, sized, memory_budget="1.6GiB", policy=chosen) as server:
        first = server.handle.pid
        with patient.stream("POST", server.url + CHAT, json=body("one", stream=True, seed=7)) as busy:
            pieces = busy.iter_text()
            next(pieces)
            assert post(server, **body("two", timeout=0.3)).status_code == 408
            wait_until(lambda: state_of(server, "two") == then)
            assert not server.handle.is_closed
            (tmp_path / "gate").touch()
            "".join(pieces)
        assert (state_of(server, "one"), state_of(server, "two")) == ("ready", then)
        assert server.handle.pid == first
        assert post(server, **body("two")).status_code == 200 and state_of(server, "one") == "unloaded"


# ---- with less memory than all models need


# Each takes 1.5 GiB: half a GiB of weights, as much for the KV cache, and what a process takes (`needs.PROCESS_BYTES`).
STAYS_SHORT = {"least_stay": 0.0, "longest_stay": 0.0}


def policy(**more: Any) -> Any:
    return dataclasses.replace(FAST_POLICY, **{**STAYS_SHORT, **more})


def engines(server: RunningServer) -> set[int]:
    found = {handle.pid for handle in server.server.fleet.handles.values() if handle.pid is not None}
    return {pid for pid in found if psutil.pid_exists(pid)}


def test_the_least_recently_used_is_ended_with_its_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    sized = Script(model_dir=script.model_dir, token_ids=script.token_ids, weights_bytes=GIB // 2, kv_bytes=GIB // 2)
    with serving(monkeypatch, tmp_path, sized, "one two three", memory_budget="3.2GiB", policy=policy()) as server:
        fleet = server.server.fleet
        assert post(server, **body("two")).status_code == 200
        first = fleet.handles["one"].pid
        assert first is not None
        assert post(server, **body("three")).status_code == 200
        assert [state_of(server, name) for name in ("one", "two", "three")] == ["unloaded", "ready", "ready"]
        assert not psutil.pid_exists(first) and len(engines(server)) == 2
        # What was learned of it stays to be told.
        assert patient.get(f"{server.url}/v1/models/one").json()["context_length"] == 8192
        assert patient.get(f"{server.url}/health").status_code == 200
        for name in ("two", "three", "one", "three", "two"):
            assert post(server, **body(name)).status_code == 200
            assert fleet.residency.grants.taken("cpu") <= fleet.residency.grants.budgets["cpu"]
        assert [starts(server, name) for name in ("one", "two", "three")] == [2, 2, 1]
        metrics = parse_metrics(patient.get(f"{server.url}/metrics").text)
        assert metrics["model_loads_total", "one"] == 2
        assert metrics["memory_budget_bytes", "cpu"] == round(3.2 * GIB)


def test_a_model_that_answers_is_never_ended_but_after_a_while_takes_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    gate = tmp_path / "gate"
    sized = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, weights_bytes=GIB // 2, kv_bytes=GIB // 2,
        holds={7: 2}, gate=str(gate),
    )  # fmt: skip

    async def scenario(server: RunningServer) -> None:
        one, two = (server.server.fleet.handles[name] for name in ("one", "two"))
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            answering = asyncio.create_task(client.post(CHAT, json=body("one", stream=True, seed=7)))
            while not one.holders.active:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(client.post(CHAT, json=body("two", stream=True)))
            while not one.is_closed:
                assert one.state is ModelState.READY
                await asyncio.sleep(0.01)
            behind = asyncio.create_task(client.post(CHAT, json=body("one")))
            while not one.holders.waiting:
                await asyncio.sleep(0.01)
            assert not two.holders.active
            gate.touch()
            for answer in (await answering, await waiting):
                assert answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text, answer.text
            assert ": loading: waiting for memory\n" in (await waiting).text
            assert (await behind).status_code == 200

    with serving(monkeypatch, tmp_path, sized, memory_budget="2GiB", policy=policy(patience=0.3)) as server:
        asyncio.run(scenario(server))
        assert [starts(server, name) for name in ("one", "two")] == [2, 1]


def test_what_cannot_fit_even_alone_is_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    sized = Script(model_dir=script.model_dir, token_ids=script.token_ids)
    with serving(monkeypatch, tmp_path, sized, memory_budget="4GiB", sizes={"two": 40 * GIB}) as server:
        answer = post(server, **body("two"))
        assert answer.status_code == 503 and "retry-after" not in answer.headers
        wait_until(lambda: list(patient.get(f"{server.url}/health").json()["models"]) == ["one"])
        assert [model["id"] for model in patient.get(f"{server.url}/v1/models").json()["data"]] == ["one"]
        message = answer.json()["error"]["message"]
        assert "40.50 GiB" in message and "4.00 GiB" in message and starts(server, "two") == 0
        assert state_of(server, "one") == "ready"


def test_what_had_no_room_is_loaded_as_soon_as_there_is_some(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    """It was refused without a try, so no pause that grows with failed loads keeps the next request away."""
    sized = Script(model_dir=script.model_dir, token_ids=script.token_ids, weights_bytes=GIB // 2, kv_bytes=GIB // 2)
    terms = {"one": Terms(residence=Residence(load="pinned")), "two": ON_DEMAND}
    slow = policy(first_retry_delay=NEVER, max_retry_delay=NEVER)
    with serving(monkeypatch, tmp_path, sized, terms=terms, memory_budget="2GiB", policy=slow) as server:
        for _ in range(3):
            refused = post(server, **body("two"))
            assert refused.status_code == 503 and "beside the pinned models" in refused.text
        assert patient.post(f"{server.url}/admin/models/one/unload").status_code == 200
        assert post(server, **body("two")).status_code == 200


def test_all_of_the_start_are_loaded_once_they_are_known_to_be_small(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    """Each is thought to need half of the budget at first."""
    with serving(monkeypatch, tmp_path, script, "one two three four", terms={}, memory_budget="4GiB") as server:
        assert set(patient.get(f"{server.url}/health").json()["models"].values()) == {"ready"}
        assert server.server.fleet.residency.grants.taken("cpu") <= 4 * GIB


def test_models_that_take_turns_are_bounded_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    sized = Script(model_dir=script.model_dir, token_ids=script.token_ids, weights_bytes=GIB // 2, kv_bytes=GIB // 2)
    with serving(monkeypatch, tmp_path, sized, memory_budget="2GiB", policy=policy()) as server:
        for _ in range(4):
            for name in ("two", "one"):
                assert post(server, **body(name)).status_code == 200
    said = [record.getMessage() for record in caplog.records if "take turns" in record.getMessage()]
    assert len(said) == 1 and "one, two" in said[0] and "2.00 GiB of cpu" in said[0] and "--memory-budget" in said[0]


def test_a_model_stays_for_as_long_as_its_load_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    sized = Script(model_dir=script.model_dir, token_ids=script.token_ids, weights_bytes=GIB // 2, kv_bytes=GIB // 2)
    stays = policy(least_stay=NEVER, longest_stay=NEVER)
    with serving(monkeypatch, tmp_path, sized, memory_budget="2GiB", policy=stays, load_wait=0.5) as server:
        answer = post(server, **body("two"))
        assert answer.status_code == 503 and "waiting for memory" in answer.text
        assert post(server, **body("one")).status_code == 200 and starts(server, "two") == 0


def test_idle_models_are_put_away_but_for_pinned_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    terms = {
        "one": Terms(residence=Residence(load="pinned", idle_timeout=0.2)),
        "two": Terms(residence=Residence(load="startup", idle_timeout=0.2)),
        "three": ON_DEMAND,
    }
    with serving(monkeypatch, tmp_path, script, "one two three", terms=terms) as server:
        assert post(server, **body("three")).status_code == 200
        wait_until(lambda: state_of(server, "two") == "unloaded")
        assert [state_of(server, name) for name in ("one", "three")] == ["ready", "ready"]
        assert post(server, **body("two")).status_code == 200
        assert patient.get(f"{server.url}/health").status_code == 200
