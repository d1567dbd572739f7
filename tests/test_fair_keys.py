"""Bursts of two keys at the real engine, served by the real command."""

import asyncio
import hashlib
import json
import re
from pathlib import Path

import httpx
import psutil

from server.commands.top import parse_metrics
from tests.clocks import wait_until
from tests.serving import Served, server_process, write_models

TINY = (
    "random://llama?hidden_size=64&num_hidden_layers=2&vocab_size=300&intermediate_size=128&num_attention_heads=4"
    "&num_key_value_heads=4"
)
BURST, OTHERS = 50, 5
ENDED = re.compile(r"POST /v1/completions 200 .* key=(\w+)")


def test_a_burst_of_one_key_does_not_hold_up_another(tmp_path: Path) -> None:
    """Fifty requests of one key are there when five of another come: these wait for a few of them, not for all.

    The engine stands still until all have come. In which order they ended the server's log tells.
    """
    keys = tmp_path / "keys.yaml"
    entries = [{"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("greedy", "modest")]
    entries.append({"name": "watch", "sha256": hashlib.sha256(b"watch").hexdigest(), "rights": ["metrics"]})
    keys.write_text(json.dumps({"keys": entries}))
    entry = {"name": "tiny", "source": TINY, "context": 512, "memory": "64MiB", "threads": 1, "max_num_seqs": 2}
    models = write_models(tmp_path, entry | {"dtype": "float32"})
    log = tmp_path / "log"

    async def ask(client: httpx.AsyncClient, key: str) -> None:
        body = {"prompt": [1, 2, 3, 4], "max_tokens": 40, "ignore_eos": True}
        answer = await client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text

    async def there(client: httpx.AsyncClient, count: int) -> None:
        """Wait until so many requests have come."""
        seen = 0.0
        while seen < count:
            await asyncio.sleep(0.01)
            page = await client.get("/metrics", headers={"Authorization": "Bearer watch"})
            seen = parse_metrics(page.text)[("requests_in_flight",)]

    async def scenario(served: Served) -> None:
        limits = httpx.Limits(max_connections=100)
        (engine,) = (one for one in psutil.Process(served.pid).children() if "engine.process" in one.cmdline())
        async with httpx.AsyncClient(base_url=served.url, timeout=600, limits=limits) as client:
            engine.suspend()
            tasks = [asyncio.create_task(ask(client, "greedy")) for _ in range(BURST)]
            await there(client, BURST)
            tasks += [asyncio.create_task(ask(client, "modest")) for _ in range(OTHERS)]
            await there(client, BURST + OTHERS)
            engine.resume()
            await asyncio.gather(*tasks)

    def ended() -> list[str]:
        """Whose requests they were, in the order in which they ended."""
        return ENDED.findall(log.read_text(encoding="utf-8"))

    options = ("--models", str(models), "--keys", str(keys))
    with server_process(*options, environment={"OMP_NUM_THREADS": "1"}, log=log) as served:
        asyncio.run(scenario(served))
        wait_until(lambda: len(ended()) == BURST + OTHERS)
    order = ended()
    assert order.count("greedy") == BURST and order.count("modest") == OTHERS
    last = max(place for place, key in enumerate(order) if key == "modest")
    assert order[:last].count("greedy") < BURST / 2, "the second key waited for the burst of the first"
