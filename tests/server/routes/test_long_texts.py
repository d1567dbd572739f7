"""The largest bodies of every route beside others: they hold up nobody, and what they took is given back."""

import asyncio
import dataclasses
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.prompt.text_pool import TextPool
from server.prompt.text_process import TextPolicy
from server.protocol.errors import ApiError
from tests.clocks import PATIENCE
from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server, wait_until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CLIENT = Path(__file__).with_name("post_file.py")
CHARS = 18_000_000
MAX_STALL_SECONDS = 0.1
MAX_GROWTH_BYTES = 100 * 1024**2
MEASURED = TextPolicy(cpu_seconds=600, wait_seconds=PATIENCE, niceness=(0, 0))


def words(chars: int) -> str:
    """Text of which each two or three characters are a token."""
    return ("a b" * (chars // 3 + 1))[:chars]


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def keys(count: int, value: Any = 1) -> dict[str, Any]:
    return {f"k{number}": value for number in range(count)}


def function(number: int) -> dict[str, Any]:
    parameters = {"type": "object", "properties": keys(1000, {"type": "string"})}
    return {"type": "function", "function": {"name": f"f{number}", "parameters": parameters}}


def parts(number: int) -> list[dict[str, Any]]:
    return [{"type": "text", "text": str(number * 150 + part)} for part in range(150)]


BODIES: dict[str, tuple[str, Callable[[], Any], int]] = {
    "text to tokenize": ("/tokenize", lambda: {"prompt": words(CHARS)}, 400),
    "a conversation to tokenize": ("/tokenize", lambda: {"messages": user(words(CHARS))}, 400),
    "an ordinary text": ("/tokenize", lambda: {"prompt": words(30_000)}, 200),
    "a long text": ("/tokenize", lambda: {"prompt": words(100_000)}, 200),
    "three million ids": ("/detokenize", lambda: {"tokens": [12345] * 3_000_000}, 400),
    "a chat": (CHAT, lambda: {"messages": user(words(CHARS))}, 400),
    "4,096 messages of 150 parts": (CHAT, lambda: {"messages": [user(parts(n))[0] for n in range(4096)]}, 400),
    "900,000 keys": (CHAT, lambda: {"messages": user("x"), "zz": keys(900_000)}, 400),
    "300,000 keys of variables": (
        CHAT,
        lambda: {"messages": user("x"), "chat_template_kwargs": keys(32, keys(9000))},
        400,
    ),
    "200 tools": (CHAT, lambda: {"messages": user("x"), "tools": [function(n) for n in range(200)]}, 400),
    "a schema": (
        CHAT,
        lambda: {
            "messages": user("x"),
            "response_format": {"type": "json", "value": {"properties": keys(6000, keys(90))}},
        },
        400,
    ),
    "nothing but brackets": (CHAT, lambda: "[" * CHARS, 400),
    "a prompt": (COMPLETIONS, lambda: {"prompt": words(CHARS)}, 400),
    "a prompt of three million ids": (COMPLETIONS, lambda: {"prompt": [12345] * 3_000_000}, 400),
    "256 prompts": (COMPLETIONS, lambda: {"prompt": [[123] * 8000] * 256, "echo": True, "max_tokens": 0}, 200),
    "256 texts": (COMPLETIONS, lambda: {"prompt": [words(70_000)] * 256}, 400),
}


def texts_of(server: RunningServer) -> TextPool:
    assert server.server.texts is not None
    return server.server.texts


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[RunningServer]:
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(
            patch, tmp_path_factory.mktemp("long"), Script(model_dir=str(smollm2_dir), token_ids=[504])
        ) as running,
    ):
        patch.setattr(texts_of(running), "policy", MEASURED)
        yield running


def post(server: RunningServer, path: str, body: Path) -> tuple[int, dict[str, Any]]:
    """Send a body from another process, so that this one's time and memory are the server's alone."""
    command = [sys.executable, str(CLIENT), str(server.port), path, str(body)]
    status, _, answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.partition("\n")
    return int(status), json.loads(answer)


def written(body: Any, tmp_path: Path) -> Path:
    """A file with the JSON of a body."""
    file = tmp_path / "body"
    file.write_text(body if isinstance(body, str) else json.dumps(body, separators=(",", ":")))
    return file


class Stalls:
    """How long the event loop was kept from its work: what this whole process computed between two of its rounds.

    What others compute on the same machine does not count.
    """

    def __init__(self, server: RunningServer) -> None:
        self.longest = 0.0
        self._server = server
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> "Stalls":
        gc.disable()  # the tests before left much to look through
        self._last = time.process_time()
        self._server.call(self._look)
        return self

    def __exit__(self, *error: object) -> None:
        self._server.call(lambda: self._timer and self._timer.cancel())
        gc.enable()

    def _look(self) -> None:
        now = time.process_time()
        self.longest, self._last = max(self.longest, now - self._last), now
        self._timer = self._server.loop.call_later(0.002, self._look)


@pytest.mark.parametrize("name", BODIES)
def test_large_bodies_hold_up_nobody(name: str, server: RunningServer, tmp_path: Path) -> None:
    """An event loop that is never kept for 100 ms answers /health in that time, and lets streams pass."""
    path, body, expected = BODIES[name]
    file = written(body(), tmp_path)
    patient.post(server.url + CHAT, json={"messages": user("warm up"), "max_tokens": 2})
    before = psutil.Process().memory_info().rss
    with Stalls(server) as stalls:
        status, answer = post(server, path, file)
    assert status == expected, str(answer)[:500]
    assert status == 200 or answer["error"]["code"] != "request_too_complex"
    assert stalls.longest < MAX_STALL_SECONDS
    wait_until(lambda: psutil.Process().memory_info().rss - before < MAX_GROWTH_BYTES)
    wait_until(lambda: server.server.admission.buffered == 0 == server.server.admission.in_flight)


def test_a_schema_that_is_too_long_never_comes_to_the_engine(server: RunningServer) -> None:
    before = len(server.events("add"))
    value = {"type": "string", "description": "x" * 2_000_000}
    answer = patient.post(
        server.url + CHAT, json={"messages": user("x"), "response_format": {"type": "json", "value": value}}
    )
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "response_format.value"
    assert len(server.events("add")) == before


def test_answers_are_the_same_wherever_the_work_is_done(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"max_tokens": 4, "seed": 1}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/tokenize", {"prompt": "a <|im_end|> b", "return_token_strs": True}),
        ("/tokenize", {"messages": user("a <|im_end|> b"), "tools": [tool]}),
        ("/detokenize", {"tokens": [1, 2, 504]}),
        (CHAT, {"messages": user("a"), "tools": [tool], "tool_choice": "required", "logit_bias": {"5": 1.5}, **fields}),
        (CHAT, {"messages": user("a"), "response_format": {"type": "regex", "value": "é+"}, "stop": "zz", **fields}),
        (CHAT, {"messages": user("a"), "reasoning_effort": "high", **fields}),
        (COMPLETIONS, {"prompt": ["ab", [1, 504]], "echo": True, "logprobs": 2, **fields}),
        (COMPLETIONS, {"prompt": "ab", "echo": True, "n": 2, **fields}),
        (CHAT, {"messages": user("a"), "model": "missing"}),
        (CHAT, {"messages": user("a"), "zz": 1}),
    ]

    def answers() -> list[Any]:
        found = [patient.post(server.url + path, json=body) for path, body in requests]
        volatile = {"id", "created"}
        return [(a.status_code, {k: v for k, v in a.json().items() if k not in volatile}) for a in found]

    here = answers()
    assert {status for status, _ in here} == {200, 400, 404}
    monkeypatch.setattr(texts_of(server), "policy", dataclasses.replace(MEASURED, here_bytes=0))
    assert answers() == here
    wait_until(lambda: texts_of(server).num_processes == 1)  # those of large bodies before may be ending still


@pytest.mark.parametrize(
    ("limits", "why"),
    [({"cpu_seconds": 1}, "1 seconds"), ({"memory_bytes": 512 * 2**20}, "512 MiB")],
    ids=["time", "memory"],
)
def test_a_body_that_takes_too_much_ends_with_its_process(
    limits: dict[str, int], why: str, server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_of(server), "policy", dataclasses.replace(MEASURED, **limits))
    file = written({"messages": [user(parts(n))[0] for n in range(4096)]}, tmp_path)
    status, answer = post(server, CHAT, file)
    assert status == 400 and answer["error"]["code"] == "request_too_complex"
    assert why in answer["error"]["message"]
    monkeypatch.setattr(texts_of(server), "policy", MEASURED)
    assert post(server, "/tokenize", written({"prompt": words(100_000)}, tmp_path))[0] == 200


def test_a_process_without_work_ends(server: RunningServer, tmp_path: Path) -> None:
    assert post(server, "/tokenize", written({"prompt": words(100_000)}, tmp_path))[0] == 200
    wait_until(lambda: texts_of(server).num_processes == 1)
    server.pass_time(MEASURED.idle_seconds + 1)
    wait_until(lambda: not texts_of(server).num_processes)


NEVER_DONE = (sys.executable, "-c", "import sys; sys.stdin.buffer.read()")
"""A process that reads until nobody writes any more, and says nothing."""
STUB = TextPolicy(command=NEVER_DONE, processes=2, large_bytes=100)


def test_the_process_of_a_client_that_left_is_ended(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would never be done."""
    monkeypatch.setattr(texts_of(server), "policy", dataclasses.replace(MEASURED, command=NEVER_DONE))
    body = json.dumps({"messages": [user(parts(n))[0] for n in range(3000)]}).encode()
    children = psutil.Process().children
    before = {child.pid for child in children()}
    with server.connect() as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        wait_until(lambda: {child.pid for child in children()} - before)
    wait_until(lambda: not {child.pid for child in children()} - before)
    wait_until(lambda: server.server.admission.buffered == 0)


def in_turn(policy: TextPolicy, sizes: list[int], started: Callable[[list[int]], bool]) -> list[int]:
    """The sizes of bodies that come while the first holds a process, in the order in which they had theirs."""

    async def scenario() -> list[int]:
        pool, order, let_go = TextPool(policy), [], asyncio.Event()

        async def body(size: int) -> None:
            async with pool.process(size):
                order.append(size)
                await let_go.wait()

        tasks = []
        for size in sizes:
            tasks.append(asyncio.create_task(body(size)))
            await asyncio.sleep(0)
        while not started(order):
            await asyncio.sleep(0.01)
        let_go.set()
        await asyncio.gather(*tasks)
        await pool.close()
        return order

    return asyncio.run(scenario())


def test_ordinary_bodies_overtake_large_ones() -> None:
    one = dataclasses.replace(STUB, processes=1)
    assert in_turn(one, [500, 501, 502, 1, 2], lambda order: order == [500]) == [500, 1, 2, 501, 502]


def test_large_bodies_never_have_all_processes() -> None:
    assert in_turn(STUB, [500, 501, 502, 1], lambda order: order == [500, 1])[:2] == [500, 1]


def test_who_waits_too_long_is_refused() -> None:
    async def scenario() -> None:
        pool = TextPool(dataclasses.replace(STUB, processes=1, wait_seconds=0.05))
        async with pool.process(1):
            with pytest.raises(ApiError) as caught:
                async with pool.process(1):
                    raise AssertionError("there is only one")
        assert caught.value.status == 503 and caught.value.headers["Retry-After"]
        async with pool.process(1):
            assert pool.num_processes == 1
        await pool.close()
        assert not pool.num_processes

    asyncio.run(scenario())
