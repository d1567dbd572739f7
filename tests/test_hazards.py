"""Bad input beside good: what must be refused is, quickly and by name, and four neighbours never notice.

Each row tries one kind of trouble over HTTP while four seeded streams run on a real engine. The tokens of those streams
must be the same as when nobody else was there, and the engine's process too.
"""

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.config import EngineConfig
from engine.weights.random_tokenizer import write_tokenizer
from server.fleet.fleet import EngineHandle, FleetPolicy, ModelState
from server.prompt import template_limits
from tests.constraint_hazards import ROWS
from tests.hazards import CONTEXT, CONTROL, CRAMPED_TOKENS, TOKENS, Try, body_of, text_of, user
from tests.server.fakes import FAST_POLICY, RunningServer, Script, running_server, set_script, wait_until
from tests.tiny_models import EOS_TOKEN_ID

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
SLOWEST = 5.0
"""Seconds that any refusal may take. Bodies of megabytes are among them, and four streams run meanwhile."""


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
        wait_until(lambda: all(handle.state is not ModelState.LOADING for handle in handles), 60)
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
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

        async def meet() -> None:
            if not rounds or rounds[-1].done():
                rounds.append(asyncio.create_task(neighbours(client)))
                await asyncio.sleep(0.05)

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
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            return await neighbours(client)

    tokens = asyncio.run(run())
    assert len({str(one) for one in tokens}) == 4 and all(one[-2:][0] == "length" for one in tokens)
    return tokens


def judge(trial: Try, answer: httpx.Response, seconds: float) -> None:
    glimpse = f"{trial.body[:300]!r} got {answer.status_code} {answer.text[:300]}"
    assert answer.status_code in trial.status, glimpse
    assert seconds < SLOWEST, f"{seconds:.1f} s for {glimpse}"
    if answer.status_code == 400:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and len(answer.content) < 1500, glimpse
        assert "Traceback" not in answer.text and "0x" not in answer.text, glimpse
        assert trial.param is None or error["param"] == trial.param, glimpse
    elif b'"stream": true' in trial.body:
        assert answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text, glimpse
    elif trial.check is not None:
        assert trial.check(answer.json()), glimpse


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row}: {ROWS[row][0]}")
def test_trouble_beside_four_streams(row: int, server: RunningServer, quiet: list[list[Any]]) -> None:
    tries = ROWS[row][1]
    served = [server.server.fleet.handles[name] for name in ("tiny", "cramped")]
    pids = [handle.pid for handle in served]

    async def attempts(client: httpx.AsyncClient, meet: Meet) -> None:
        for trial in tries:
            await meet()
            began = time.monotonic()
            answer = await client.post(CHAT, content=trial.body, headers=JSON)
            judge(trial, answer, time.monotonic() - began)

    assert all(tokens == quiet for tokens in asyncio.run(beside_neighbours(server, attempts)))
    assert [handle.pid for handle in served] == pids
    wait_until(lambda: all(handle.client and not handle.client.num_requests for handle in served))
    wait_until(lambda: all(handle.client and not handle.client.stats.blocks_owned for handle in served))


def test_a_stop_string_across_tokens_ends_the_answer_there(server: RunningServer) -> None:
    fields = {"seed": 5, "temperature": 1, "ignore_eos": True, "max_tokens": 60}
    full = text_of(httpx.post(server.url + CHAT, content=body_of(fields), headers=JSON).json())
    stop = full[20:24]
    cut = httpx.post(server.url + CHAT, content=body_of({**fields, "stop": stop}), headers=JSON).json()
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
        answer = httpx.post(server.url + CHAT, content=body_of(bodies[place]), headers=JSON)
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
        answer = httpx.post(server.url + CHAT, content=body_of({"model": name}), headers=JSON)
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
    directory = fleet._directory
    assert directory is not None

    async def load(client: httpx.AsyncClient, meet: Meet) -> None:
        await meet()
        for handle in handles.values():
            asyncio.run_coroutine_threadsafe(handle.start(directory), server.loop).result(10)
        while any(handle.state is ModelState.LOADING for handle in handles.values()):
            await meet()
            await asyncio.sleep(0.05)

    try:
        assert all(tokens == quiet for tokens in asyncio.run(beside_neighbours(server, load)))
        assert_failed(server, handles)
        assert httpx.get(f"{server.url}/health").json()["models"]["tiny"] == "ready"
        yield handles
    finally:
        for name, handle in handles.items():
            del fleet.handles[name]
            asyncio.run_coroutine_threadsafe(handle.stop(), server.loop).result(10)


def test_code_and_pickles_of_a_model_are_never_run(
    server: RunningServer, quiet: list[list[Any]], tiny_dir: Path, tmp_path: Path
) -> None:
    """Row 23: such models fail to load."""
    hostile = hostile_weights(tiny_dir, tmp_path, tmp_path / "canary")
    with failing_beside_streams(server, quiet, hostile, FleetPolicy()):
        assert not (tmp_path / "canary").exists()


def test_a_hostile_template_fails_the_load_of_its_model_alone(
    server: RunningServer, quiet: list[list[Any]], tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 21 and 22: it is tried in the process that all streams pass through."""
    monkeypatch.setattr(template_limits, "RENDER_SECONDS", 0.5)
    set_script(monkeypatch, Script(token_ids=[70]))
    paths: dict[str, Path] = {}
    for number, template in enumerate((*ENDLESS, *ESCAPES)):
        path = paths[f"evil{number}"] = shutil.copytree(tiny_dir, tmp_path / f"evil{number}")
        (path / "chat_template.jinja").write_text(template.replace("CANARY", str(tmp_path / "canary")))
    with failing_beside_streams(server, quiet, paths, FAST_POLICY) as handles:
        assert all("template" in str(handle.error) for handle in handles.values())
        assert not (tmp_path / "canary").exists()
