"""Verdicts on servers that do, refuse, pass over or garble what they are asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from server.benchmarks.conformance import CHECKS, outcome_of
from server.benchmarks.exchange import Asker
from server.benchmarks.verdicts import Check, Finding, judged
from tests.clocks import PATIENCE

Answering = Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]
TEXT = "The river runs from the hills down to the sea and never tires."


def answer(text: str = TEXT, end: str = "stop", tokens: int = 13, **message: Any) -> tuple[int, dict[str, Any]]:
    choice = {"index": 0, "finish_reason": end, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}
    return 200, {"id": "a", "created": 1, "model": "m", "system_fingerprint": "f", "choices": [choice], "usage": usage}


@contextmanager
def serving(answering: Answering) -> Iterator[Asker]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, found = answering(body)
            content = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True)
    thread.start()
    try:
        yield Asker(f"http://127.0.0.1:{server.server_port}/v1", model="m", timeout=PATIENCE)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def check(field: str, use: str) -> Check:
    return next(one for one in CHECKS if (one.field, one.use) == (field, use))


def verdict(field: str, use: str, answering: Answering) -> str:
    with serving(answering) as asker:
        return judged(check(field, use), asker).verdict


def stopping(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    stops = body.get("stop") or []
    stop = stops if isinstance(stops, str) else stops[-1] if stops else None
    return answer(TEXT.partition(stop)[0].rstrip() if stop else TEXT)


def refusing(text: str) -> Answering:
    return lambda body: (400, {"error": {"message": text}})


def test_a_stop_string_is_honoured_refused_ignored_or_garbled() -> None:
    assert verdict("stop", "four", stopping) == verdict("stop", "a string", stopping) == "honoured"
    assert verdict("stop", "a string", lambda body: answer()) == "ignored"
    assert verdict("stop", "a string", lambda body: answer("Another." if body.get("stop") else TEXT)) == "wrong"
    for text, expected in (("`stop` is not done here", "refused"), ("bad request", "unnamed")):
        assert (
            verdict("stop", "a string", lambda body, t=text: refusing(t)(body) if "stop" in body else answer())
            == expected
        )
    assert verdict("stop", "a string", lambda body: (500, {}) if "stop" in body else answer()) == "wrong"


def test_limits_are_counted_by_usage() -> None:
    assert verdict("max_tokens", "5", lambda body: answer(end="length", tokens=body["max_tokens"])) == "honoured"
    assert verdict("max_tokens", "5", lambda body: answer(tokens=60)) == "ignored"
    assert verdict("max_tokens", "5", lambda body: answer(end="stop", tokens=5)) == "wrong"


def test_what_ought_to_be_refused_is_honoured_by_a_refusal_that_names_it() -> None:
    for named, expected in ((True, "honoured"), (False, "unnamed")):
        text = "temperature must be at most 2" if named else "no"
        assert verdict("temperature", "99", refusing(text)) == expected
    assert verdict("temperature", "99", lambda body: answer()) == "ignored"
    assert verdict("model", "an unknown one", refusing("there is no such model")) == "honoured"


def test_calls_are_read_to_their_arguments() -> None:
    def calling(arguments: Any, name: str = "set_alarm") -> Answering:
        call = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
        return lambda body: answer("", end="tool_calls", tool_calls=[call])

    assert verdict("tool_choice", "a function", calling('{"zone": "UTC"}')) == "honoured"
    assert verdict("tool_choice", "a function", calling('{"zone": "UTC"}', "tell_time")) == "wrong"
    for broken in ('{"zone": "Mars"}', "{", {"zone": "UTC"}):
        assert verdict("tool_choice", "a function", calling(broken)) == "wrong"
    assert verdict("tool_choice", "required", lambda body: answer()) == "ignored"
    assert verdict("tool_choice", "none", calling('{"zone": "UTC"}')) == "ignored"  # as the tools are


@pytest.mark.parametrize("one", CHECKS, ids=lambda one: f"{one.field}, {one.use}")
def test_a_server_that_sends_nonsense_is_wrong_and_never_breaks_the_judge(one: Check) -> None:
    for nonsense in ({}, {"choices": [{}]}, {"choices": [{"message": 3, "finish_reason": 4}]}):
        with serving(lambda body, found=nonsense: (200, found)) as asker:
            found = judged(one, asker)
        assert isinstance(found, Finding)
        assert found.verdict in ("ignored", "wrong"), (nonsense, found)


def test_the_exit_code_tells_of_what_was_passed_over() -> None:
    def one(verdict: str) -> dict[str, str]:
        return {"field": "a", "use": "b", "rule": "c", "verdict": verdict, "detail": "d|e"}

    assert not outcome_of("x", {"checks": [one("honoured"), one("refused")]}).has_failed
    failed = outcome_of("x", {"checks": [one("ignored")]})
    assert failed.has_failed and failed.found["counts"] == {"ignored": 1}
