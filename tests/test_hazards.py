"""Bad input beside good: what must be refused is, quickly and by name, and four neighbours never notice.

Each row tries one kind of trouble over HTTP while four seeded streams run on a real engine. The tokens of those streams
must be the same as when nobody else was there, and the engine's process too. Then it is tried once more with nobody
there, to see what it costs.
"""

import asyncio
import gc
import json
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.client import EngineClient
from engine.config import EngineConfig
from engine.weights.random_tokenizer import write_tokenizer
from server.edge.queues import ModelQueue, QueueLimits
from server.fleet.handle import EngineHandle
from server.fleet.policy import FleetPolicy, ModelState
from server.prompt import template_limits
from tests.clocks import PATIENCE, REPEATS
from tests.constraint_hazards import CONSTRAINTS, ROWS
from tests.hazards import CONTEXT, CONTROL, CRAMPED_TOKENS, TOKENS, Try, body_of, text_of, user
from tests.server import patient
from tests.server.fakes import FAST_POLICY, RunningServer, Script, running_server, set_script, wait_until
from tests.tiny_models import EOS_TOKEN_ID

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # hundreds of requests, each beside others

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
DEAREST = 30
"""What trouble may cost this process's processor, in plain requests with as much JSON. Most of it costs 1 to 3."""


def tiny_chat_model(weights: Path, directory: Path) -> Path:
    """A copy of a tiny model with a tokenizer that is shorter than its logits are wide."""
    shutil.copytree(weights, directory)
    write_tokenizer(directory, TOKENS, EOS_TOKEN_ID)
    return directory


@pytest.fixture(scope="module")
def tiny_dir(tiny_model_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_chat_model(tiny_model_dir("llama"), tmp_path_factory.mktemp("hazards") / "tiny")


def hostile_weights(tiny_dir: Path, directory: Path, canary: Path) -> dict[str, Path]:
    """Row 23: a model that comes with code, and one whose weights are a pickle. `canary` is there if any of it ran."""
    found = {name: shutil.copytree(tiny_dir, directory / name) for name in ("code", "pickle")}
    for path in found.values():
        (path / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\nEvilConfig = Evil\n")
    config = json.loads((found["code"] / "config.json").read_text())
    config |= {"model_type": "evil", "architectures": ["Evil"]}
    config["auto_map"] = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}
    (found["code"] / "config.json").write_text(json.dumps(config))
    (found["pickle"] / "model.safetensors").unlink()
    call = b"cbuiltins\nopen\n(V" + str(canary).encode() + b"\nVw\ntR."
    (found["pickle"] / "pytorch_model.bin").write_bytes(call)
    return found


@pytest.fixture(scope="module")
def server(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    shared: dict[str, Any] = {"source": str(tiny_dir), "dtype": "float32", "threads": 1}
    models = (
        EngineConfig(name="tiny", context=CONTEXT, num_blocks=400, **shared),
        EngineConfig(
            name="cramped",
            num_blocks=CRAMPED_TOKENS // 16,
            max_batched_tokens=20,
            max_num_seqs=4,
            prefix_cache=False,
            fusion=False,
            attention="reference",
            **shared,
        ),
    )
    directory = tmp_path_factory.mktemp("hazards")
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(patch, directory, Script(), models=models, policy=FleetPolicy(), ready=False) as running,
    ):
        handles = running.server.fleet.handles.values()
        # Before its task runs a model is unloaded still, which is no end of its loading.
        wait_until(lambda: not {ModelState.UNLOADED, ModelState.LOADING} & {handle.state for handle in handles})
        yield running


async def neighbour(client: httpx.AsyncClient, seed: int) -> list[Any]:
    """The tokens of one stream, its end and its usage."""
    body = {
        "model": "tiny", "messages": user(f"Neighbour {seed}"), "seed": seed, "temperature": 1, "ignore_eos": True,
        "max_tokens": 450, "stream": True, "stream_options": {"include_usage": True}, "logprobs": True,
        "frequency_penalty": 0.1,
    }  # fmt: skip
    seen: list[Any] = []
    async with client.stream("POST", CHAT, json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                assert line in ("", "data: [DONE]"), line
                continue
            chunk = json.loads(line.removeprefix("data: "))
            for choice in chunk["choices"]:
                seen += [choice["delta"]["content"]] if choice["delta"]["content"] else []
                seen += [tuple(entry["bytes"]) for entry in (choice["logprobs"] or {"content": []})["content"]]
                seen += [choice["finish_reason"]] if choice["finish_reason"] else []
            seen += [chunk["usage"]["total_tokens"]] if chunk["usage"] else []
    # Tokens that came together share a chunk, so texts are compared as one.
    text = "".join(part for part in seen[:-2] if isinstance(part, str))
    return [text, *(part for part in seen[:-2] if not isinstance(part, str)), *seen[-2:]]


async def neighbours(client: httpx.AsyncClient) -> list[list[Any]]:
    """Four of them."""
    return list(await asyncio.gather(*(neighbour(client, seed) for seed in range(4))))


Meet = Callable[[], Awaitable[None]]
"""Sees that the neighbours stream, anew if they have ended."""


async def beside_neighbours(
    server: RunningServer, trouble: Callable[[httpx.AsyncClient, Meet], Awaitable[None]]
) -> Any:
    """Make trouble beside four neighbours; what each round of them said."""
    rounds: list[asyncio.Task[list[list[Any]]]] = []
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:

        async def meet() -> None:
            if not rounds or rounds[-1].done():
                rounds.append(asyncio.create_task(neighbours(client)))
                while not rounds[-1].done() and (server.handle.client is None or server.handle.client.num_requests < 4):
                    await asyncio.sleep(0.01)

        try:
            await trouble(client, meet)
            return await asyncio.gather(*rounds)
        finally:
            for task in rounds:
                task.cancel()
            await asyncio.gather(*rounds, return_exceptions=True)


@pytest.fixture(scope="module")
def quiet(server: RunningServer) -> list[list[Any]]:
    """What the neighbours say when they are alone."""

    async def run() -> list[list[Any]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client:
            return await neighbours(client)

    tokens = asyncio.run(run())
    assert len({str(one) for one in tokens}) == 4 and all(one[-2:][0] == "length" for one in tokens)
    return tokens


def judge(trial: Try, answer: httpx.Response) -> None:
    glimpse = f"{trial.body[:300]!r} got {answer.status_code} {answer.text[:300]}"
    assert answer.status_code in trial.status, glimpse
    if answer.status_code == 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and len(answer.content) < 1500, glimpse
        assert "Traceback" not in answer.text and "0x" not in answer.text, glimpse
        assert trial.param is None or error["param"] == trial.param, glimpse
    elif b'"stream": true' in trial.body:
        assert answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text, glimpse
    elif trial.check is not None:
        assert trial.check(answer.json()), glimpse


def process_seconds(work: Callable[[], object], enough: float = 0.0) -> float:
    """What this process, client and API, has of the processors: the least of a few times, or one that is low enough."""
    times = [float("inf")]
    while len(times) <= REPEATS and min(times) > enough:
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def judge_cost(server: RunningServer, tries: list[Try], submitted: list[int]) -> None:
    """What is refused never comes to the engine, but for constraints, and there to no step; nothing costs much here."""
    engines = [handle.client for handle in server.server.fleet.handles.values() if handle.client]

    def steps() -> int:
        return sum(engine.stats.steps for engine in engines)

    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:

        def post(body: bytes) -> httpx.Response:
            return client.post(CHAT, content=body, headers=JSON)

        plain = process_seconds(lambda: post(body_of({})))
        for trial in tries:
            wait_until(lambda: not any(engine.stats.blocks_owned for engine in engines))
            submitted.clear()
            before, tokens = steps(), 0
            answer = post(trial.body)
            if answer.status_code == 400:
                assert steps() == before, trial.body[:300]
                assert not submitted or trial.param in CONSTRAINTS, trial.body[:300]
            elif b'"stream": true' not in trial.body:
                tokens = answer.json()["usage"]["completion_tokens"]
            numbers = b"[" + b"1," * (len(trial.body) // 2) + b"1]"
            allowed = DEAREST * (plain + process_seconds(partial(json.loads, numbers))) + tokens * plain
            seconds = process_seconds(partial(post, trial.body), enough=allowed)
            assert seconds <= allowed, f"{seconds / allowed:.1f} times what may be for {trial.body[:300]!r}"


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the prompts that were sent to an engine."""
    found: list[int] = []

    def submit(self: EngineClient, prompt_token_ids: list[int], *args: Any, **options: Any) -> Any:
        found.append(len(prompt_token_ids))
        return original(self, prompt_token_ids, *args, **options)

    original = EngineClient.submit
    monkeypatch.setattr(EngineClient, "submit", submit)
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row}: {ROWS[row][0]}")
def test_trouble_beside_four_streams(
    row: int, server: RunningServer, quiet: list[list[Any]], submitted: list[int]
) -> None:
    tries = ROWS[row][1]
    served = [server.server.fleet.handles[name] for name in ("tiny", "cramped")]
    pids = [handle.pid for handle in served]

    async def attempts(client: httpx.AsyncClient, meet: Meet) -> None:
        for trial in tries:
            await meet()
            judge(trial, await client.post(CHAT, content=trial.body, headers=JSON))

    assert all(tokens == quiet for tokens in asyncio.run(beside_neighbours(server, attempts)))
    assert [handle.pid for handle in served] == pids
    wait_until(lambda: all(handle.client and not handle.client.num_requests for handle in served))
    wait_until(lambda: all(handle.client and not handle.client.stats.blocks_owned for handle in served))
    gc.disable()  # the tests before left much to look through
    try:
        judge_cost(server, tries, submitted)
    finally:
        gc.enable()


def test_a_stop_string_across_tokens_ends_the_answer_there(server: RunningServer) -> None:
    fields = {"seed": 5, "temperature": 1, "ignore_eos": True, "max_tokens": 60}
    full = text_of(patient.post(server.url + CHAT, content=body_of(fields), headers=JSON).json())
    stop = full[20:24]
    cut = patient.post(server.url + CHAT, content=body_of({**fields, "stop": stop}), headers=JSON).json()
    assert len(stop.encode()) > 1 and text_of(cut) == full.partition(stop)[0]
    assert cut["choices"][0]["finish_reason"] == "stop"


ESCAPES = (
    "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{% for m in messages %}{{ m.content }}{{ self.__init__.__globals__.open('CANARY', 'w') }}{% endfor %}",
)
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for m in messages %}{{ m.content }}{% endfor %}{{ 'x' * 10**9 }}",
    "{% for m in messages %}{{ m.content }}{% endfor %}{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
)


def test_control_tokens_are_text_wherever_they_stand(server: RunningServer) -> None:
    """Row 24 for every place: the prompt is as long as with other letters, since each byte of it is a token."""

    def tokens(text: str, place: str) -> int | None:
        call = {"id": "a", "type": "function", "function": {"name": text, "arguments": json.dumps({text: text})}}
        bodies: dict[str, dict[str, Any]] = {
            "content": {"messages": [{"role": "system", "content": text}, *user(text)]},
            "part": {"messages": user([{"type": "text", "text": text[:7]}, {"type": "text", "text": text[7:]}])},
            "name": {"messages": [{"role": "user", "name": text, "content": "x"}]},
            "call": {"messages": [*user("x"), {"role": "assistant", "tool_calls": [call]}, *user("y")]},
            "reasoning": {"messages": [*user("x"), {"role": "assistant", "content": text, "reasoning": text}]},
            "tool": {"tools": [{"type": "function", "function": {"name": text, "description": text}}]},
            "tool_prompt": {"tool_prompt": text},
        }
        answer = patient.post(server.url + CHAT, content=body_of(bodies[place]), headers=JSON)
        assert answer.status_code in (200, 400), answer.text
        return int(answer.json()["usage"]["prompt_tokens"]) if answer.status_code == 200 else None

    harmless = CONTROL.translate(str.maketrans("<|>", "xyz"))
    for place in ("content", "part", "name", "call", "reasoning", "tool", "tool_prompt"):
        assert tokens(CONTROL, place) == tokens(harmless, place), place
    assert tokens(CONTROL, "content") is not None


def assert_failed(server: RunningServer, names: Iterable[str]) -> None:
    """That these models say only that they are not there."""
    for name in names:
        assert server.server.fleet.handles[name].state is ModelState.FAILED, name
        answer = patient.post(server.url + CHAT, content=body_of({"model": name}), headers=JSON)
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "model_not_ready"
        assert "/" not in answer.json()["error"]["message"]


@contextmanager
def failing_beside_streams(
    server: RunningServer, quiet: list[list[Any]], sources: dict[str, Path], policy: FleetPolicy
) -> Iterator[dict[str, EngineHandle]]:
    """Models that are added to the server, and fail to load, while the neighbours stream."""
    fleet = server.server.fleet
    handles = {name: EngineHandle(EngineConfig(name=name, source=str(path)), policy) for name, path in sources.items()}
    fleet.handles.update(handles)
    server.server.queues.update({name: ModelQueue(name, QueueLimits()) for name in handles})
    assert fleet._directory is not None
    directory = fleet._directory.path

    async def load(client: httpx.AsyncClient, meet: Meet) -> None:
        await meet()
        for handle in handles.values():
            asyncio.run_coroutine_threadsafe(handle.start(directory), server.loop).result(PATIENCE)
        while any(handle.state is ModelState.LOADING for handle in handles.values()):
            await meet()
            await asyncio.sleep(0.05)

    try:
        assert all(tokens == quiet for tokens in asyncio.run(beside_neighbours(server, load)))
        assert_failed(server, handles)
        assert patient.get(f"{server.url}/health").json()["models"]["tiny"] == "ready"
        yield handles
    finally:
        for name, handle in handles.items():
            del fleet.handles[name], server.server.queues[name]
            asyncio.run_coroutine_threadsafe(handle.stop(), server.loop).result(PATIENCE)


def test_code_and_pickles_of_a_model_are_never_run(
    server: RunningServer, quiet: list[list[Any]], tiny_dir: Path, tmp_path: Path
) -> None:
    """Row 23: such models fail to load."""
    hostile = hostile_weights(tiny_dir, tmp_path, tmp_path / "canary")
    with failing_beside_streams(server, quiet, hostile, FleetPolicy()):
        assert not (tmp_path / "canary").exists()


class Rounds(threading.local):
    """A `time` module for renders, by which each look takes a millisecond of the thread that looks."""

    now = 0.0

    def thread_time(self) -> float:
        self.now += 0.001
        return self.now


def test_a_hostile_template_fails_the_load_of_its_model_alone(
    server: RunningServer, quiet: list[list[Any]], tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 21 and 22: it is tried in the process that all streams pass through."""
    monkeypatch.setattr(template_limits, "time", Rounds())
    set_script(monkeypatch, Script(token_ids=[70]))
    paths: dict[str, Path] = {}
    for number, template in enumerate((*ENDLESS, *ESCAPES)):
        path = paths[f"evil{number}"] = shutil.copytree(tiny_dir, tmp_path / f"evil{number}")
        (path / "chat_template.jinja").write_text(template.replace("CANARY", str(tmp_path / "canary")))
    with failing_beside_streams(server, quiet, paths, FAST_POLICY) as handles:
        assert all("template" in str(handle.error) for handle in handles.values())
        assert not (tmp_path / "canary").exists()
