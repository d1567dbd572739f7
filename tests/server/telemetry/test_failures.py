"""What the log's line says of a request that failed: the code, and which limit or state that comes of."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.edge.auth import digest_of
from server.telemetry.logs import JsonFormatter, TextFormatter
from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server, set_script, wait_until

LIMITS = {"few": {"requests_per_minute": 0}, "short": {"tokens_per_minute": 5}, "busy": {"concurrent_answers": 1}}
CHAT = "/v1/chat/completions"


@pytest.fixture
def script(smollm2_dir: Path, caplog: pytest.LogCaptureFixture) -> Script:
    caplog.set_level(logging.INFO)
    return Script(model_dir=str(smollm2_dir), token_ids=[504])


def ask(server: RunningServer, path: str = CHAT, key: str = "all", **fields: Any) -> int:
    more = {} if path != CHAT else {"messages": [{"role": "user", "content": "the word is xyzzy"}], "max_tokens": 5}
    headers = {"Authorization": f"Bearer {key}"}
    return int(patient.post(server.url + path, json={**more, **fields}, headers=headers).status_code)


def told(caplog: pytest.LogCaptureFixture, count: int) -> list[dict[str, Any]]:
    """What the lines of so many requests say, as they are in JSON."""

    def found() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "server.edge.guard"]

    wait_until(lambda: len(found()) >= count)
    for record in found():
        assert "xyzzy" not in TextFormatter().format(record) + JsonFormatter().format(record)
    return [json.loads(JsonFormatter().format(record)) for record in found()]


def failures(caplog: pytest.LogCaptureFixture, count: int) -> list[tuple[int, str | None, str | None]]:
    """Status, code and reason of so many requests."""
    return [(entry["status"], entry.get("error"), entry.get("error_reason")) for entry in told(caplog, count)]


def test_refusals_of_one_status_have_lines_that_differ(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    keys = tmp_path / "keys.yaml"
    entries = [{"name": name, "sha256": digest_of(name).hex()} | more for name, more in LIMITS.items()]
    keys.write_text(yaml.safe_dump({"keys": entries}))
    with running_server(monkeypatch, tmp_path, script, keys_file=keys) as server:
        asked = [{"key": "few"}, {"key": "short"}, {"key": "busy", "n": 2}, {"key": "nobody's"}]
        assert [ask(server, **fields) for fields in asked] == [429, 429, 429, 401]
        assert ask(server, "/xyzz", key="busy") == 404
        server.call(lambda: setattr(server.server.admission, "draining", True))
        assert ask(server, key="busy") == 503
        server.call(lambda: setattr(server.server.admission, "draining", False))
    assert failures(caplog, 6) == [
        (429, "rate_limit_exceeded", "requests_per_minute"),
        (429, "rate_limit_exceeded", "tokens_per_minute"),
        (429, "rate_limit_exceeded", "concurrent_answers"),
        (401, "invalid_api_key", None),
        (404, "not_found", None),
        (503, "overloaded", "draining"),
    ]
    lines = [record.getMessage() for record in caplog.records if record.name == "server.edge.guard"]
    assert lines[0].endswith(" key=few error=rate_limit_exceeded reason=requests_per_minute")
    assert lines[3].endswith(" error=invalid_api_key")


def test_a_stream_that_failed_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Script(model_dir=script.model_dir, token_ids=[504], error_after=2)
    with running_server(monkeypatch, tmp_path, failing) as server:
        assert ask(server, stream=True) == 200 and ask(server) == 500
        assert ask(server, max_tokens="xyzzy") == 400 and ask(server, key="xyzzy", model="xyzzy") == 404
    assert failures(caplog, 4) == [
        (200, "engine_error", None),
        (500, "engine_error", None),
        (400, "invalid_type", None),
        (404, "model_not_found", None),
    ]
    assert told(caplog, 4)[0]["finish_reason"] == "error"


def test_a_load_that_failed_says_so_and_of_which_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    with running_server(monkeypatch, tmp_path, script) as server:
        assert ask(server, "/tokenize", prompt="xyzzy") == 200 == ask(server, "/detokenize", tokens=[504])
        assert patient.get(f"{server.url}/v1/models/fake").status_code == 200
        assert ask(server, "/admin/models/fake/unload") == 200
        set_script(monkeypatch, Script(model_dir=script.model_dir, load_fails="why"))
        assert ask(server, "/admin/models/fake/load", stream=True) == 200
        assert ask(server, "/admin/models/fake/load") == 503
    assert [entry.get("model") for entry in told(caplog, 6)] == ["fake"] * 6
    assert failures(caplog, 6)[4:] == [(200, "model_not_ready", "failed"), (503, "model_not_ready", "failed")]
