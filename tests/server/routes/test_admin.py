"""Loading and unloading by hand, over HTTP and from the command line, and who may do it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from server.commands.cli import main
from server.edge.auth import Keys
from server.protocol.model_shapes import ModelListShape
from tests.server import patient
from tests.server.fakes import RunningServer, Script, wait_until
from tests.server.routes.test_on_demand import CHAT, body, post, script, serving, starts, state_of

__all__ = ["script"]
USE, ADMIN = "use-key", "admin-key"


def admin(server: RunningServer, path: str, key: str = "", **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return patient.post(f"{server.url}/admin/models/{path}", headers=headers | more.pop("headers", {}), **more)


def events(stream: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: {")]


def test_a_model_is_loaded_and_put_away_with_its_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with serving(monkeypatch, tmp_path, script, "one org/two") as server:
        handle = server.server.fleet.handles["org/two"]
        loaded = admin(server, "org/two/load")
        assert loaded.status_code == 200 and loaded.json()["state"] == "ready"
        assert admin(server, "org/two/load").status_code == 200 and starts(server, "org/two") == 1
        pid = handle.pid
        assert pid is not None and psutil.pid_exists(pid) and handle.tokenizer is not None
        for _ in range(2):
            gone = admin(server, "org/two/unload", json={})
            assert gone.status_code == 200 and gone.json()["state"] == "unloaded"
        assert not psutil.pid_exists(pid) and handle.tokenizer is None
        assert server.server.fleet.residency.grants.of("org/two") is None
        assert admin(server, "three/load").status_code == 404
        for wrong in ({"streams": True}, {"stream": 1}, [1]):
            assert admin(server, "one/unload", json=wrong).status_code == 400
        assert patient.get(f"{server.url}/admin/models/one/load").status_code == 405
        assert post(server, **body("org/two")).status_code == 200


def test_stages_come_as_events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    gate = tmp_path / "gate"
    slow = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, gate=str(gate), by_model={"two": {"holds_load": True}}
    )
    with serving(monkeypatch, tmp_path, slow) as server:
        with patient.stream("POST", f"{server.url}/admin/models/two/load", json={"stream": True}) as answer:
            pieces = answer.iter_text()
            seen = next(pieces)
            while '"reading weights"' not in seen:
                seen += next(pieces)
            gate.touch()
            told = events(seen + "".join(pieces))
        assert [event["state"] for event in told][-1] == "ready" and told[0]["state"] == "loading"
        assert any(event.get("progress", {}).get("stage") == "reading weights" for event in told)
        told = events(admin(server, "two/unload", json={"stream": True}).text)
        assert [event["state"] for event in told] == ["unloading", "unloaded"]


def test_a_failed_load_is_tried_again_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    broken = Script(
        model_dir=script.model_dir, token_ids=script.token_ids, by_model={"two": {"load_fails": "no weights"}}
    )
    with serving(monkeypatch, tmp_path, broken) as server:
        for number in (1, 2):
            assert "could not be loaded: no weights" in admin(server, "two/load").json()["error"]["message"]
            assert starts(server, "two") == number
        told = events(admin(server, "two/load", json={"stream": True}).text)
        assert "no weights" in told[-1]["error"]["message"]
        listed = patient.get(f"{server.url}/v1/models/two").json()
        assert listed["state"] == "failed" and listed["error"] == "no weights"
        gone = admin(server, "two/unload").json()
        assert gone["state"] == "unloaded" and gone["error"] is None


def test_a_model_with_requests_is_not_unloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    endless = Script(model_dir=script.model_dir, token_ids=script.token_ids, step_seconds=0.01, context=10**7)
    with serving(monkeypatch, tmp_path, endless) as server:
        with patient.stream("POST", server.url + CHAT, json=body("one", stream=True, max_tokens=10**6)) as answer:
            pieces = answer.iter_text()
            next(pieces)
            busy = admin(server, "one/unload")
            assert busy.status_code == 409 and busy.json()["error"]["code"] == "model_busy"
            assert "has 1 request;" in busy.json()["error"]["message"] and state_of(server, "one") == "ready"
        wait_until(lambda: admin(server, "one/unload").status_code == 200)


def test_a_load_can_be_called_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    slow = Script(model_dir=script.model_dir, token_ids=script.token_ids, by_model={"two": {"holds_load": True}})
    with serving(monkeypatch, tmp_path, slow, load_wait=0.1) as server:
        assert admin(server, "two/load").status_code == 503
        pid = server.server.fleet.handles["two"].pid
        assert admin(server, "two/unload").json()["state"] == "unloaded"
        assert pid is None or not psutil.pid_exists(pid)


# ---- rights


def test_only_admin_keys_administer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with serving(monkeypatch, tmp_path, script, api_keys=(USE,), admin_keys=(ADMIN,)) as server:
        for verb in ("load", "unload"):
            assert admin(server, f"two/{verb}").status_code == 401
            refused = admin(server, f"two/{verb}", USE)
            assert refused.status_code == 403 and refused.json()["error"]["code"] == "not_permitted"
        assert starts(server, "two") == 0
        assert admin(server, "two/load", ADMIN).status_code == 200
        as_admin = {"Authorization": f"Bearer {ADMIN}"}
        assert patient.post(server.url + CHAT, json=body("two"), headers=as_admin).status_code == 200


def test_a_list_of_keys_without_rights_administers_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with serving(monkeypatch, tmp_path, script, api_keys=(USE,)) as server:
        assert admin(server, "two/load", USE).status_code == 403


@pytest.mark.parametrize(
    ("client", "may"), [("127.0.0.1", True), ("::1", True), ("127.8.8.8", True), ("10.0.0.1", False), ("", False)]
)
def test_without_keys_this_machine_administers(client: str, may: bool) -> None:
    def may_administer(keys: Keys, authorization: str | None) -> bool:
        caller = keys.caller(None if authorization is None else authorization.encode(), client)
        return caller is not None and caller.may("admin")

    assert may_administer(Keys(), None) is may
    assert not may_administer(Keys([USE]), f"Bearer {USE}")
    assert not may_administer(Keys([], [ADMIN]), f"Basic {ADMIN}")
    assert may_administer(Keys([], [ADMIN]), f"Bearer {ADMIN}")


def test_pages_of_other_sites_do_not_administer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    """A browser sends a form's request to this machine without asking."""
    with serving(monkeypatch, tmp_path, script) as server:
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            assert admin(server, "two/load", headers={"Origin": origin}).status_code == 403
        assert admin(server, "two/load", headers={"Origin": server.url}).status_code == 200


# ---- the list


def test_the_list_says_of_each_model_what_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    sized = Script(model_dir=script.model_dir, token_ids=script.token_ids, weights_bytes=5, kv_bytes=7)
    with serving(monkeypatch, tmp_path, sized) as server:
        answer = patient.get(f"{server.url}/v1/models").content
        one, two = ModelListShape.model_validate_json(answer).data
        assert (one.state, one.load, one.weights_bytes, one.kv_bytes) == ("ready", "startup", 5, 7)
        assert (two.state, two.load, two.last_used, two.memory_bytes) == ("unloaded", "on_demand", None, None)
        named = json.loads(answer)["data"][1]
        assert all(named[key] is None for key in ("context_length", "capabilities", "device", "weights_bytes"))
        post(server, **body("two"))
        two = ModelListShape.model_validate_json(patient.get(f"{server.url}/v1/models").content).data[1]
        assert two.last_used and two.capabilities and two.device == "cpu"
        wait_until(lambda: patient.get(f"{server.url}/v1/models/two").json()["memory_bytes"] > 5)


# ---- the command line


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> Iterator[None]:
    for name in ("HEADRACE_URL", "HEADRACE_API_KEY", "HEADRACE_ADMIN_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    yield


def test_models_are_listed_loaded_and_unloaded_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        serving(monkeypatch, tmp_path, script, "one org/two", api_keys=(USE,), admin_keys=(ADMIN,)) as server,
        environment(monkeypatch, HEADRACE_URL=server.url, HEADRACE_ADMIN_API_KEY=ADMIN),
    ):
        assert main(["ps"]) == 0
        head, first, second = capsys.readouterr().out.splitlines()
        assert head.split() == ["MODEL", "STATE", "LOAD", "MEMORY", "DEVICE", "CONTEXT", "REQUESTS", "USED"]
        assert first.split()[:3] == ["one", "ready", "startup"] and "8192" in first
        assert second.split() == ["org/two", "unloaded", "on_demand", "-", "-", "-", "0", "never"]
        assert main(["load", "org/two", "--url", server.url]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[-1] == "org/two: ready" and said[0].startswith("org/two: ")
        assert state_of_key(server) == "ready"
        assert main(["unload", "org/two"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "org/two: unloaded"
        assert main(["load", "three"]) == 1
        assert "does not exist on this server" in capsys.readouterr().err


def state_of_key(server: RunningServer) -> str:
    answer = patient.get(f"{server.url}/v1/models/org/two", headers={"Authorization": f"Bearer {USE}"})
    return str(answer.json()["state"])


def test_what_goes_wrong_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Script(model_dir=script.model_dir, token_ids=script.token_ids, by_model={"two": {"load_fails": "why"}})
    with (
        serving(monkeypatch, tmp_path, broken, api_keys=(USE,)) as server,
        environment(monkeypatch, HEADRACE_URL=server.url),
    ):
        assert main(["ps"]) == 1 and "HEADRACE_ADMIN_API_KEY" in capsys.readouterr().err
    with serving(monkeypatch, tmp_path, broken) as server, environment(monkeypatch, HEADRACE_URL=server.url):
        assert main(["load", "two"]) == 1 and "could not be loaded: why" in capsys.readouterr().err
        assert main(["ps"]) == 0 and "two: why" in capsys.readouterr().out
    assert main(["ps", "--url", "http://127.0.0.1:1"]) == 1 and "cannot be asked" in capsys.readouterr().err
    assert main(["ps", "--url", "localhost"]) == 1 and "no address" in capsys.readouterr().err
