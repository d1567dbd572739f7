"""Bursts of two keys at the real engine, served by the real command."""

import asyncio
import hashlib
import json
from pathlib import Path

import httpx

from tests.serving import server_process, write_models

TINY = (
    "random://llama?hidden_size=64&num_hidden_layers=2&vocab_size=300&intermediate_size=128&num_attention_heads=4"
    "&num_key_value_heads=4"
)
BURST = 50


def test_a_burst_of_one_key_does_not_hold_up_another(tmp_path: Path) -> None:
    """Fifty requests of one key are there when five of another come: these wait for a few of them, not for all."""
    keys = tmp_path / "keys.yaml"
    entries = [{"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("greedy", "modest")]
    keys.write_text(json.dumps({"keys": entries}))
    entry = {"name": "tiny", "source": TINY, "context": 512, "memory": "64MiB", "threads": 1, "max_num_seqs": 2}
    models = write_models(tmp_path, entry | {"dtype": "float32"})
    ended: list[str] = []

    async def ask(client: httpx.AsyncClient, key: str) -> None:
        body = {"prompt": [1, 2, 3, 4], "max_tokens": 40, "ignore_eos": True}
        answer = await client.post("/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        ended.append(key)

    async def scenario(url: str) -> None:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
            burst = [asyncio.create_task(ask(client, "greedy")) for _ in range(BURST)]
            while len(ended) < 2:
                await asyncio.sleep(0.01)
            before = len(ended)
            await asyncio.gather(*(ask(client, "modest") for _ in range(5)))
            assert len(ended) - before < BURST / 2, "the second key waited for the burst of the first"
            await asyncio.gather(*burst)

    with server_process("--models", str(models), "--keys", str(keys), environment={"OMP_NUM_THREADS": "1"}) as served:
        asyncio.run(scenario(served.url))
    assert ended.count("greedy") == BURST and ended.count("modest") == 5
