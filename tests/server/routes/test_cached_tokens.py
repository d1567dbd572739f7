"""`/tokenize` with `return_cached_tokens`: the engine is asked as the tenant who asks, and its end is told."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import patient
from tests.server.fakes import Script, running_server, wait_until

KEYS = ("first-key", "second-key")
MESSAGES = [{"role": "user", "content": "What is the capital of the country that lies between the two rivers?"}]


@pytest.fixture
def script(smollm2_dir: Path) -> Script:
    return Script(model_dir=str(smollm2_dir), token_ids=[504], eos_after=1, context=100_000)


def test_the_engine_is_asked_as_it_would_be_for_the_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script
) -> None:
    with running_server(monkeypatch, tmp_path, script, api_keys=KEYS) as server:

        def post(path: str, key: str, **fields: Any) -> Any:
            headers = {"authorization": f"Bearer {key}"}
            answer = patient.post(f"{server.url}{path}", json={"messages": MESSAGES} | fields, headers=headers)
            assert answer.status_code == 200, answer.text
            return answer.json()

        salts = set()
        long = [{"role": "user", "content": "many words " * 10_000}]  # read by a process of its own
        for key in KEYS:
            for fields in ({}, {"prompt_cache_key": "mine"}, {"messages": long}):
                told = post("/tokenize", key, return_cached_tokens=True, return_token_strs=True, **fields)
                assert told["cached_tokens"] == told["count"] // 16 * 16 and len(told["token_strs"]) == told["count"]
                post("/v1/chat/completions", key, max_tokens=1, **fields)
                asked, added = server.events("ask_cached")[-1], server.events("add")[-1]
                assert (asked["salt"], asked["prompt"]) == (added["salt"], added["prompt"])
                salts.add(asked["salt"])
        assert len(salts) == 4, "of two keys, with and without a key of the cache"
        before = len(server.events("ask_cached"))
        assert post("/tokenize", KEYS[0])["cached_tokens"] is None
        raw = patient.post(
            f"{server.url}/tokenize",
            json={"prompt": "words and words " * 20, "return_cached_tokens": True},
            headers={"authorization": f"Bearer {KEYS[0]}"},
        ).json()
        assert raw["cached_tokens"] == raw["count"] // 16 * 16 > 0
        assert len(server.events("ask_cached")) == before + 1


def test_an_engine_that_ends_meanwhile_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Script) -> None:
    with running_server(monkeypatch, tmp_path, script) as server, ThreadPoolExecutor(1) as threads:
        pid = server.handle.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)

        def ask() -> httpx.Response:
            return patient.post(f"{server.url}/tokenize", json={"messages": MESSAGES, "return_cached_tokens": True})

        answer = threads.submit(ask)
        client = server.handle.client
        assert client is not None
        wait_until(lambda: client._questions)
        os.kill(pid, signal.SIGKILL)
        refused = answer.result()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_died"
        assert not client._questions and refused.headers["retry-after"]
