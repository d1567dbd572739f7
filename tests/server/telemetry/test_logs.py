"""Lines of the log in both formats, of a real server and of hostile requests."""

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.telemetry.logs import JsonFormatter, TextFormatter, formatter
from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server, wait_until

SECRET = "swordfish"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path) -> Iterator[RunningServer]:
    script = Script(model_dir=str(smollm2_dir), token_ids=[504], step_seconds=0.002)
    with running_server(monkeypatch, tmp_path, script, api_keys=(SECRET,)) as running:
        yield running


def lines(caplog: pytest.LogCaptureFixture, form: logging.Formatter) -> list[str]:
    return [form.format(record) for record in caplog.records if record.name == "server.edge.guard"]


def ask(server: RunningServer, **more: Any) -> Any:
    body = {"messages": [{"role": "user", "content": "the word is xyzzy"}], "max_tokens": 5, **more}
    headers = {"Authorization": f"Bearer {SECRET}", "X-Request-Id": "mine"}
    return patient.post(f"{server.url}/v1/chat/completions", json=body, headers=headers)


def test_a_line_says_what_a_request_was_and_never_its_text(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert ask(server).status_code == 200 and ask(server, stream=True).status_code == 200
    assert ask(server, model="no/such/model").status_code == 404
    wait_until(lambda: len(lines(caplog, TextFormatter())) >= 3)
    whole, streamed, unknown = map(json.loads, lines(caplog, JsonFormatter()))
    for entry, stream in ((whole, False), (streamed, True)):
        assert (
            entry["request_id"] == "mine"
            and entry["key"] == "api-key[0]"
            and entry["status"] == 200
            and entry["model"] == "fake"
        )
        assert entry["stream"] is stream and entry["finish_reason"] == "length" and entry["completion_tokens"] == 5
        assert entry["prompt_tokens"] > 5 and 0 < entry["first_token_seconds"] <= entry["seconds"]
        assert entry["level"] == "INFO" and entry["time"].endswith("Z") and entry["path"] == "/v1/chat/completions"
    assert unknown["status"] == 404 and "model" not in unknown, "what a client calls a model is not repeated"
    text = lines(caplog, TextFormatter())[0]
    assert "POST /v1/chat/completions 200 in " in text and "id=mine key=api-key[0] model=fake prompt=" in text
    assert text.endswith("finish=length") and " answer=5 " in text and " first=" in text
    everything = "\n".join(lines(caplog, TextFormatter()) + lines(caplog, JsonFormatter()))
    assert not any(word in everything for word in ("xyzzy", SECRET, "no/such/model"))


def test_what_is_posted_to_the_path_of_a_page_is_told_and_the_page_is_not(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert patient.get(f"{server.url}/").status_code == 200
    headers = {"Authorization": f"Bearer {SECRET}"}
    assert patient.post(f"{server.url}/", json={"inputs": "xyzzy"}, headers=headers).status_code == 200
    wait_until(lambda: lines(caplog, TextFormatter()))
    (only,) = lines(caplog, TextFormatter())
    assert "POST / 200 in " in only and "key=api-key[0] model=fake prompt=" in only and "xyzzy" not in only


def test_no_request_forges_a_line(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with server.connect() as connection:
        connection.sendall(b'GET /%0a{"level":"ERROR"}\xff HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\tb\r\n\r\n')
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass
    wait_until(lambda: lines(caplog, TextFormatter()) or caplog.records)
    for form in (TextFormatter(), JsonFormatter()):
        for line in lines(caplog, form):
            assert "\n" not in line and "\t" not in line


def test_what_was_raised_stays_in_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, __file__, 1, "a\n%s", ("b",), None)
        record.exc_info = __import__("sys").exc_info()
    line = formatter("json").format(record)
    assert "\n" not in line and json.loads(line)["message"] == "a\nb"
    assert "ValueError: two\nlines" in json.loads(line)["exception"]
    assert isinstance(formatter("text"), TextFormatter)
