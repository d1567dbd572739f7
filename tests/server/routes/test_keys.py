"""Keys with rights and limits, as clients of the real server see them."""

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.commands import keys_watch
from server.commands.top import parse_metrics
from server.edge import quotas
from server.edge.quotas import Bucket
from server.fleet.handle import EngineHandle
from tests.server import patient
from tests.server.fakes import RunningServer, Script, wait_until
from tests.server.routes.test_on_demand import CHAT, MESSAGES, TEXT, script, serving, starts

__all__ = ["script"]
PROMPT = 37
"""Tokens of `MESSAGES` in the tests' template."""


def write_keys(path: Path, **keys: dict[str, Any]) -> Path:
    """A keys file in which each key is called as it is spelt; replaced at once, as an editor does."""
    entries = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), **fields} for name, fields in keys.items()
    ]
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"keys": entries}))
    os.replace(new, path)
    return path


@contextmanager
def keyed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, keys: dict[str, dict[str, Any]], **more: Any
) -> Iterator[RunningServer]:
    monkeypatch.setattr(keys_watch, "LOOK_SECONDS", 0.02)
    # However long a test takes, its minute does not pass: what a key may ask for comes back by being settled alone.
    monkeypatch.setattr(quotas, "Bucket", lambda limit, clock: Bucket(limit, lambda: 0.0))
    path = write_keys(tmp_path / "keys.yaml", **keys)
    with serving(monkeypatch, tmp_path, script, keys_file=path, **more) as server:
        yield server


def ask(server: RunningServer, key: str, path: str = CHAT, **fields: Any) -> httpx.Response:
    given = {"messages": MESSAGES, "max_tokens": 4} if path == CHAT else {}
    return patient.post(server.url + path, json=given | fields, headers={"Authorization": f"Bearer {key}"})


def get(server: RunningServer, key: str, path: str) -> httpx.Response:
    return patient.get(server.url + path, headers={"Authorization": f"Bearer {key}"})


def error(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    return found


def remaining(answer: httpx.Response, unit: str) -> int:
    return int(answer.headers[f"x-ratelimit-remaining-{unit}"])


def test_rights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    keys = {
        "user": {},
        "operator": {"rights": ["admin"]},
        "prometheus": {"rights": ["metrics"]},
        "nobody": {"rights": []},
    }
    with keyed(monkeypatch, tmp_path, script, keys) as server:
        for key, chat, metrics, load in (
            ("user", 200, 403, 403),
            ("operator", 200, 200, 200),
            ("prometheus", 403, 200, 403),
            ("nobody", 403, 403, 403),
            ("stranger", 401, 401, 401),
        ):
            assert ask(server, key).status_code == chat
            assert get(server, key, "/v1/models").status_code == chat
            assert get(server, key, "/metrics").status_code == metrics
            assert ask(server, key, "/admin/models/two/load").status_code == load
            assert get(server, key, "/openapi.json").status_code == (401 if key == "stranger" else 200)
            assert get(server, key, "/health").status_code == 200
        refused = error(get(server, "user", "/metrics"))
        assert (refused["code"], refused["type"]) == ("not_permitted", "permission_error")


def test_a_model_that_is_not_for_a_key_does_not_exist_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    keys = {
        "second": {"models": ["tw*"], "rights": ["admin"]},
        "none": {"models": []},
        "by_alias": {"models": ["nick"]},
        "by_pattern": {"models": ["any-*"]},
        "by_name": {"models": ["any-x"]},
    }
    with keyed(monkeypatch, tmp_path, script, keys, aliases={"nick": "two", "any-*": "one"}) as server:
        for key in ("second", "by_alias"):
            assert [model["id"] for model in get(server, key, "/v1/models").json()["data"]] == ["two"]
            assert ask(server, key, model="two").json()["model"] == "two"
            assert ask(server, key, model="nick").json()["model"] == "two"
            assert ask(server, key).json()["model"] == "two"  # the first that it may use
            for path, given in ((CHAT, {}), ("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
                hidden, missing = (ask(server, key, path, model=name, **given) for name in ("one", "ten"))
                assert hidden.status_code == missing.status_code == 404
                assert error(hidden)["code"] == "model_not_found"
                assert error(hidden)["message"].replace("'one'", "'ten'") == error(missing)["message"]
            assert ask(server, key, model="any-two").status_code == 404
            assert get(server, key, "/v1/models/one").status_code == 404
        for key in ("by_pattern", "by_name"):
            assert [model["id"] for model in get(server, key, "/v1/models").json()["data"]] == ["one"]
            assert [ask(server, key, model=name).status_code for name in ("any-x", "one", "two")] == [200, 200, 404]
        long = [{"role": "user", "content": "a " * 30_000}]  # read in a process of its own
        assert ask(server, "second", model="one", messages=long).status_code == 404
        assert ask(server, "second", "/admin/models/one/unload").status_code == 404
        assert get(server, "none", "/v1/models").json()["data"] == [] and ask(server, "none").status_code == 404


def test_requests_a_minute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with keyed(monkeypatch, tmp_path, script, {"few": {"requests_per_minute": 2}, "many": {}}) as server:
        first, second, third = (ask(server, "few") for _ in range(3))
        assert [answer.status_code for answer in (first, second, third)] == [200, 200, 429]
        assert [remaining(answer, "requests") for answer in (first, second, third)] == [1, 0, 0]
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-reset-requests"].endswith("s")
        assert error(third)["type"] == "requests" and error(third)["code"] == "rate_limit_exceeded"
        assert 1 <= int(third.headers["retry-after"]) <= 30
        assert get(server, "few", "/v1/models").status_code == 200
        assert ask(server, "few", "/tokenize", prompt="x").status_code == 429
        free = ask(server, "many")
        assert free.status_code == 200 and not any(name.startswith("x-ratelimit") for name in free.headers)
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="few", max_retries=0)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="one", messages=MESSAGES)  # type: ignore[arg-type]
        assert caught.value.code == "rate_limit_exceeded" and caught.value.type == "requests"


def test_a_request_counts_unless_it_is_to_come_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with keyed(monkeypatch, tmp_path, script, {"few": {"requests_per_minute": 10}}) as server:
        assert remaining(ask(server, "few", max_tokens=-1), "requests") == 9
        server.call(server.server.admission.drain)
        full = ask(server, "few")
        assert full.status_code == 503 and remaining(full, "requests") == 9
        server.server.admission.draining = False


def test_tokens_a_minute_are_reserved_and_settled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with keyed(monkeypatch, tmp_path, script, {"few": {"tokens_per_minute": 500}}) as server:
        whole = ask(server, "few")
        used = whole.json()["usage"]["total_tokens"]
        assert 500 - used - 1 <= remaining(whole, "tokens") <= 500
        large = ask(server, "few", max_tokens=500)
        assert large.status_code == 429 and error(large)["type"] == "tokens"
        assert large.headers["x-should-retry"] == "false" and "retry-after" not in large.headers
        long = ask(server, "few", n=2, max_tokens=200)
        assert long.status_code == 200
        busy = ask(server, "few", max_tokens=300)
        assert busy.status_code == 429 and "retry-after" in busy.headers
        streamed = ask(server, "few", stream=True, max_tokens=2)
        assert streamed.status_code == 429 and error(streamed)["type"] == "tokens"


def test_who_does_not_say_how_long_an_answer_may_be_is_let_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    """The context is far longer than a minute's tokens."""
    short = Script(model_dir=script.model_dir, token_ids=script.token_ids, eos_after=4)
    with keyed(monkeypatch, tmp_path, short, {"few": {"tokens_per_minute": 100}}) as server:
        answer = ask(server, "few", max_tokens=None)
        assert answer.status_code == 200 and remaining(answer, "tokens") > 40


@pytest.mark.parametrize("stream", [False, True])
def test_no_request_takes_more_than_a_minute_s_tokens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, stream: bool
) -> None:
    """The model never ends by itself, and its context is far longer than what the key has a minute."""
    endless = Script(model_dir=script.model_dir, token_ids=script.token_ids, context=8000)
    n = 5
    limits = {"few": 200, "tight": PROMPT + n, "none": PROMPT + n - 1}
    keys: dict[str, dict[str, Any]] = {name: {"tokens_per_minute": limit} for name, limit in limits.items()}
    with keyed(monkeypatch, tmp_path, endless, keys | {"any": {}}) as server:
        if stream:
            fields = {"stream": True, "stream_options": {"include_usage": True}}
            answer = ask(server, "few", max_tokens=None, n=n, ignore_eos=True, **fields)
            events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
            usage = events[-1]["usage"]
            ends = [choice["finish_reason"] for event in events for choice in event["choices"]]
            assert ends.count("length") == n
        else:
            whole = ask(server, "few", max_tokens=None, n=n, ignore_eos=True).json()
            usage = whole["usage"]
            assert [choice["finish_reason"] for choice in whole["choices"]] == ["length"] * n
        assert usage["completion_tokens"] == n * ((200 - PROMPT) // n) and 195 <= usage["total_tokens"] <= 200
        assert ask(server, "any", max_tokens=None, n=2).json()["usage"]["total_tokens"] > 15_000
        assert ask(server, "tight", max_tokens=None, n=n).json()["usage"]["total_tokens"] == PROMPT + n
        refused = ask(server, "none", max_tokens=None, n=n, stream=stream)
        assert refused.status_code == 429 and refused.headers["x-should-retry"] == "false"


def test_what_must_be_longer_than_a_minute_s_tokens_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    endless = Script(model_dir=script.model_dir, token_ids=script.token_ids, context=8000)
    keys: dict[str, dict[str, Any]] = {name: {"tokens_per_minute": 200} for name in ("a", "b", "c")}
    with keyed(monkeypatch, tmp_path, endless, keys) as server:
        for fields in ({"min_tokens": 200 - PROMPT + 1}, {"n": 2, "min_tokens": 82}, {"max_tokens": 200}):
            refused = ask(server, "a", **{"max_tokens": None} | fields)
            assert refused.status_code == 429 and refused.headers["x-should-retry"] == "false", fields
            assert "200 a minute" in error(refused)["message"]
        whole = ask(server, "a", max_tokens=None, min_tokens=200 - PROMPT)
        assert whole.json()["usage"]["total_tokens"] == 200
        # Raw completions have a default, which is shared in the same way.
        listed = ask(server, "b", "/v1/completions", prompt=[[1] * 10, [1] * 30, [1] * 40], n=3)
        assert listed.json()["usage"] == {
            "prompt_tokens": 80, "completion_tokens": 9 * 13, "total_tokens": 80 + 9 * 13
        } | {key: value for key, value in listed.json()["usage"].items() if key.endswith("details")}  # fmt: skip
        scored = ask(server, "c", "/v1/completions", prompt=[1] * 10, max_tokens=0, echo=True)
        assert scored.json()["usage"]["total_tokens"] == 10


def test_what_a_key_never_allows_loads_no_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    long = "a " * 30_000  # read in a process of its own
    never: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"max_tokens": 101}),
        (CHAT, {"max_tokens": None, "max_completion_tokens": 51, "n": 2}),
        (CHAT, {"max_tokens": None, "min_tokens": 101}),
        (CHAT, {"max_tokens": 101, "messages": [{"role": "user", "content": long}]}),
        ("/v1/completions", {"prompt": ["a", "b", "c"], "max_tokens": 34}),
        ("/", {"inputs": "a", "parameters": {"max_new_tokens": 101}}),
    ]
    keys = {"few": {"tokens_per_minute": 100}, "none": {"tokens_per_minute": 0}}
    with keyed(monkeypatch, tmp_path, script, keys) as server:
        for path, fields in never:
            for stream in (False, True):
                refused = ask(server, "few", path, model="two", stream=stream, **fields)
                assert refused.status_code == 429 and refused.headers["x-should-retry"] == "false", fields
                assert "100 a minute" in error(refused)["message"]
                assert get(server, "few", "/v1/models/two").json()["state"] == "unloaded"
        assert ask(server, "none", model="two").status_code == 429
        assert starts(server, "two") == 0
        assert ask(server, "few", model="two").status_code == 200
        assert get(server, "few", "/v1/models/two").json()["state"] == "ready"


def test_a_stream_that_is_cut_is_settled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    endless = Script(model_dir=script.model_dir, token_ids=script.token_ids, holds={-1: 2}, context=10**6)
    keys = {"few": {"tokens_per_minute": 1000, "concurrent_answers": 4}}
    with keyed(monkeypatch, tmp_path, endless, keys) as server:
        fields = {"messages": MESSAGES, "max_tokens": 200, "n": 4, "stream": True}
        headers = {"Authorization": "Bearer few"}
        with patient.stream("POST", server.url + CHAT, json=fields, headers=headers) as answer:
            assert answer.status_code == 200 and remaining(answer, "tokens") < 300
            pieces = answer.iter_raw()
            next(pieces)
            more = ask(server, "few")
            assert more.status_code == 429 and error(more)["type"] == "requests"
        wait_until(lambda: server.server.admission.in_flight == 0)
        caller = server.server.keys.caller(b"Bearer few", None)
        assert caller is not None
        account = caller.account
        wait_until(lambda: account.answers == 0)
        tokens = dict(server.call(account.headers))[b"x-ratelimit-remaining-tokens"]
        assert int(tokens) > 700  # what was reserved and not used is back


def test_places_are_given_back_however_a_request_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with keyed(monkeypatch, tmp_path, script, {"one": {"concurrent_answers": 1}}) as server:
        for fields in ({}, {"model": "ten"}, {"max_tokens": -1}, {"n": 2}, {"stream": True}, {"max_tokens": 10**6}):
            ask(server, "one", **fields)
        for path, given in (
            ("/tokenize", {"prompt": "x"}),
            ("/tokenize", {"model": "ten", "prompt": "x"}),
            ("/tokenize", {}),
        ):
            ask(server, "one", path, **given)
        assert ask(server, "one").status_code == 200
        assert error(ask(server, "one", n=2))["type"] == "requests"


def test_a_limit_of_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    keys = {name: {name: 0} for name in ("requests_per_minute", "tokens_per_minute", "concurrent_answers")}
    with keyed(monkeypatch, tmp_path, script, keys) as server:
        for key in keys:
            answer = ask(server, key)
            assert answer.status_code == 429 and answer.headers["x-should-retry"] == "false"


def test_a_key_may_not_go_before_others_without_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with keyed(monkeypatch, tmp_path, script, {"some": {"lowest_priority": -1, "weight": 3}, "any": {}}) as server:
        for key, priority, status in (("some", -2, 403), ("some", -1, 200), ("some", 5, 200), ("any", -1000, 200)):
            for stream in (False, True):
                answer = ask(server, key, priority=priority, stream=stream)
                assert answer.status_code == status
                if status == 403:
                    found = error(answer)
                    assert (found["param"], found["code"]) == ("priority", "not_permitted")
                    assert "-1" in found["message"] and "-2" in found["message"]
        added = [(entry["priority"], entry["weight"]) for entry in server.events("add")]
        assert added == [(-1, 3.0)] * 2 + [(5, 3.0)] * 2 + [(-1000, 1.0)] * 2


def test_what_each_key_does_is_counted_under_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    keys: dict[str, dict[str, Any]] = {"a": {}, "b": {"requests_per_minute": 1}, "prom": {"rights": ["metrics"]}}
    with keyed(monkeypatch, tmp_path, script, keys) as server:

        def counted(name: str) -> dict[str, float]:
            metrics = parse_metrics(get(server, "prom", "/metrics").text)
            return {key: value for (series, *labels), value in metrics.items() if series == name for key in labels}

        used = [ask(server, "a").json()["usage"], ask(server, "b").json()["usage"]]
        assert ask(server, "b").status_code == 429 and ask(server, "a", model="no").status_code == 404
        assert ask(server, "unknown").status_code == 401 and ask(server, "prom").status_code == 403
        assert counted("key_requests_total") == {"a": 2, "b": 2, "prom": 1}
        assert counted("key_requests_limited_total") == {"a": 0, "b": 1, "prom": 0}
        for kind in ("prompt_tokens", "completion_tokens"):
            of = {key: usage[kind] for key, usage in zip("ab", used, strict=True)}
            assert counted(f"key_{kind}_total") == of | {"prom": 0}
        write_keys(tmp_path / "keys.yaml", prom=keys["prom"], c={})
        wait_until(lambda: ask(server, "c").status_code == 200)
        assert counted("key_requests_total") == {"prom": 1, "c": 1}


def test_the_file_is_read_again_while_requests_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gate = tmp_path / "gate"
    held = Script(model_dir=script.model_dir, token_ids=script.token_ids, gate=str(gate), holds={-1: 2})
    path = tmp_path / "keys.yaml"
    with keyed(monkeypatch, tmp_path, held, {"old": {}}) as server:
        fields = {"messages": MESSAGES, "max_tokens": 4, "stream": True}
        with patient.stream("POST", server.url + CHAT, json=fields, headers={"Authorization": "Bearer old"}) as answer:
            pieces = answer.iter_text()
            seen = next(pieces)
            write_keys(path, new={"rights": ["metrics"]})
            wait_until(lambda: get(server, "new", "/metrics").status_code == 200)
            assert get(server, "old", "/v1/models").status_code == 401
            for broken in ("keys: [", "", "keys: 1", "\0"):
                path.write_text(broken)
                wait_until(lambda: "the keys stay as they were" in caplog.text)
                caplog.clear()
                assert get(server, "new", "/metrics").status_code == 200
            path.unlink()
            wait_until(lambda: "the keys stay as they were" in caplog.text)
            assert get(server, "new", "/metrics").status_code == 200
            write_keys(path, old={})
            wait_until(lambda: get(server, "old", "/v1/models").status_code == 200)
            gate.touch()
            assert "[DONE]" in seen + "".join(pieces)
        assert "was read again: 1 key" in caplog.text
        for secret in (b"old", b"new"):
            assert hashlib.sha256(secret).hexdigest() not in caplog.text


def test_a_key_for_models_that_are_not_here_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if "no model of this server" in record.getMessage()]

    keys: dict[str, dict[str, Any]] = {
        "right": {"models": ["one"]},
        "wrong": {"models": ["onne"]},
        "no": {"models": []},
    }
    with keyed(monkeypatch, tmp_path, script, keys) as server:
        wait_until(lambda: bool(warnings()))
        assert warnings() == ["the key wrong may use 'onne', which is no model of this server"]
        assert ask(server, "right").status_code == 200 and ask(server, "wrong").status_code == 404
        assert len(warnings()) == 1
        write_keys(tmp_path / "keys.yaml", later={"models": ["a\nb", "one"]}, right={})
        wait_until(lambda: len(warnings()) == 2)
        assert warnings()[1] == "the key later may use 'a\\nb', which is no model of this server"
        for key in ("wrong", "later"):
            assert hashlib.sha256(key.encode()).hexdigest() not in caplog.text


def test_a_file_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    """Half a file may be whole YAML, with half of the keys."""

    class Recorded:
        def __init__(self) -> None:
            self.read: list[int] = []

        def replace(self, entries: tuple[object, ...]) -> None:
            self.read.append(len(entries))

        def entries_without_model(self, meant_by: object) -> dict[str, list[str]]:
            return {}

    path = write_keys(tmp_path / "keys.yaml", a={})
    keys = Recorded()

    async def scenario() -> None:
        watch = keys_watch.KeysWatch(path, keys, lambda entry: ())  # type: ignore[arg-type]
        await watch.look()
        write_keys(path, a={}, b={})
        await watch.look()
        write_keys(path, a={}, b={}, c={})
        await watch.look()
        assert keys.read == []
        await watch.look()
        await watch.look()
        assert keys.read == [3]
        await watch.look(is_told=True)
        assert keys.read == [3, 3]

    asyncio.run(scenario())


def test_pages_of_allowed_origins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    origin = "https://app.example"
    with keyed(
        monkeypatch, tmp_path, script, {"key": {"requests_per_minute": 9, "rights": ["admin"]}}, cors_origins=(origin,)
    ) as server:
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,x-stainless-os",
        }
        preflight = patient.request("OPTIONS", server.url + CHAT, headers=asked)
        assert preflight.status_code == 204 and preflight.headers["access-control-allow-origin"] == origin
        assert preflight.headers["access-control-allow-headers"] == "authorization, *"
        assert "access-control-allow-credentials" not in preflight.headers and preflight.headers["vary"] == "origin"
        refused = patient.request("OPTIONS", server.url + CHAT, headers=asked | {"Origin": "https://evil.example"})
        assert refused.status_code == 401 and "access-control-allow-origin" not in refused.headers
        key = {"Authorization": "Bearer key"}
        answers = [
            patient.post(
                server.url + CHAT,
                json={"messages": MESSAGES, "max_tokens": 1, "stream": stream},
                headers=key | {"Origin": origin},
            )
            for stream in (True, False)
        ]
        answers += [patient.get(server.url + "/v1/models", headers={"Origin": origin})]
        assert [answer.status_code for answer in answers] == [200, 200, 401]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == origin
            assert "x-ratelimit-remaining-requests" in answer.headers["access-control-expose-headers"]
        other = patient.get(server.url + "/v1/models", headers=key | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        # An operator's powers are not for pages of other origins, even allowed ones.
        assert patient.post(f"{server.url}/admin/models/two/load", headers=key | {"Origin": origin}).status_code == 403


def test_without_origins_no_page_may_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with serving(monkeypatch, tmp_path, script) as server:
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        assert patient.request("OPTIONS", server.url + CHAT, headers=asked).status_code == 405
        answer = patient.get(server.url + "/v1/models", headers=asked)
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_the_flat_list_and_the_file_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with keyed(monkeypatch, tmp_path, script, {"filed": {}}, api_keys=("flat",), admin_keys=("chief",)) as server:
        assert [ask(server, key).status_code for key in ("filed", "flat", "chief", "none")] == [200, 200, 200, 401]
        assert get(server, "flat", "/metrics").status_code == 200
        assert ask(server, "chief", "/admin/models/two/load").status_code == 200
        text = ask(server, "filed").json()["choices"][0]["message"]["content"]
        assert text == TEXT and isinstance(server.handle, EngineHandle)
