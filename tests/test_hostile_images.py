"""Hostile images beside good requests: hundreds of files and addresses, a 400 each, while four streams never notice."""

import asyncio
import json
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.clocks import PATIENCE
from tests.hostile_images import DATA_URLS, data_url, files, written
from tests.hostile_sites import CANARY_HOSTS, Site, addresses, bad_answers, ok, site
from tests.serving import running_server, write_models
from tests.vision_models import build_seeing_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # hundreds of requests, each beside others

PLACE = "messages[0].content[1].image_url"
GOOD = written("PNG")


@dataclass
class World:
    """A server, a site that it may ask for images, and one that it must not."""

    url: str
    bad: Site
    canary: Site


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Of the models `fetching` may ask the site, `guarded` only what the canary is called, which is not public."""
    work = tmp_path_factory.mktemp("hostile")
    common = {
        "source": str(build_seeing_model("qwen2_5_vl", work / "model")),
        "dtype": "float32", "load": "startup", "memory": "16MiB", "threads": 1,
    }  # fmt: skip
    with site({"/canary": ok(GOOD)}) as canary, site({"/good": ok(GOOD), **bad_answers(GOOD, canary.port)}) as bad:
        canary_hosts = [f"{host}:{canary.port}" for host in CANARY_HOSTS]
        models = write_models(
            work,
            {"name": "fetching", **common,
             "images": {"remote": [f"localhost:{bad.port}"], "private": ["127.0.0.1/32", "::1/128"]}},
            {"name": "guarded", **common, "images": {"remote": canary_hosts}},
            {"name": "open", **common, "images": {"remote": "public"}},
        )  # fmt: skip
        with running_server("--models", str(models), seconds=300) as url:
            yield World(url, bad, canary)


def request(url: str, model: str = "fetching") -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"model": model, "messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, part]}]}


async def neighbour(client: httpx.AsyncClient, number: int) -> list[Any]:
    """All that one stream says; two of four look at an image."""
    content: Any = f"Neighbour {number}"
    if number % 2:
        content = [{"type": "image_url", "image_url": {"url": data_url(GOOD)}}, {"type": "text", "text": content}]
    body = {
        "model": "fetching", "messages": [{"role": "user", "content": content}], "seed": number, "temperature": 1,
        "ignore_eos": True, "max_tokens": 300, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    text, rest = "", []
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                rest += [choice["finish_reason"] for choice in chunk["choices"] if choice["finish_reason"]]
                rest += [chunk["usage"]["completion_tokens"]] if chunk.get("usage") else []
    return [text, *rest]


async def neighbours(client: httpx.AsyncClient) -> list[list[Any]]:
    return list(await asyncio.gather(*(neighbour(client, number) for number in range(4))))


def beside_neighbours(world: World, trouble: list[dict[str, Any]], *, at_once: int) -> None:
    """Make trouble, a few requests at a time; what four neighbours say all the while is what they say alone."""

    async def run() -> None:
        async with httpx.AsyncClient(base_url=world.url, timeout=PATIENCE) as client:
            quiet = await neighbours(client)
            assert [said[1:] for said in quiet] == [["length", 300]] * 4 and len({said[0] for said in quiet}) == 4
            turns = asyncio.Semaphore(at_once)
            tries = asyncio.gather(*(_in_turn(turns, refused(client, body)) for body in trouble))
            while not tries.done():
                assert await neighbours(client) == quiet
            await tries

    asyncio.run(run())


async def _in_turn(turns: asyncio.Semaphore, work: Awaitable[None]) -> None:
    async with turns:
        await work


async def refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await client.post("/v1/chat/completions", json=body)
    url = body["messages"][0]["content"][1]["image_url"]["url"]
    glimpse = f"{url[:200]!r} of {len(url)} got {answer.status_code} {answer.text[:300]}"
    assert answer.status_code == 400 and len(answer.content) < 1500, glimpse
    error = answer.json()["error"]
    assert error["param"] == PLACE and PLACE in error["message"], glimpse
    assert error["code"] in ("invalid_image_url", "image_not_fetched", "invalid_image"), glimpse
    for leak in ("Traceback", "0x7", "/tmp", "127.0.0.1", "::1", ".py"):
        assert leak not in error["message"], glimpse


def test_files_that_are_no_images(world: World) -> None:
    trouble = [request(data_url(content)) for _, content in files()]
    assert len(trouble) > 150
    beside_neighbours(world, [*trouble, *map(request, DATA_URLS)], at_once=4)


def test_addresses_that_lead_inside(world: World) -> None:
    trouble = [request(url, model) for url in addresses(world.canary.port) for model in ("guarded", "open", "fetching")]
    assert len(trouble) > 300
    beside_neighbours(world, trouble, at_once=8)
    assert not world.canary.seen


def test_sites_that_answer_as_none_should(world: World) -> None:
    trouble = [request(f"http://localhost:{world.bad.port}{path}") for path in world.bad.answers if path != "/good"]
    trouble.append(request(f"https://localhost:{world.bad.port}/good"))
    beside_neighbours(world, trouble, at_once=16)
    assert not world.canary.seen
    assert {path for path in world.bad.answers if path != "/good"} <= set(world.bad.seen)
    good = httpx.post(
        f"{world.url}/v1/chat/completions", json=request(f"http://localhost:{world.bad.port}/good"), timeout=PATIENCE
    )
    assert good.status_code == 200, good.text
