"""A thousand different images through a real server: what remembers them is full at some point, and memory stays."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

from tests.clocks import PATIENCE
from tests.serving import Served, server_process, write_models
from tests.tiny_models import COMMON, SIGLIP, VISION_FAMILIES, auto_class
from tests.vision_models import build_seeing_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

IMAGES, FULL = 1000, 300
"""How many, and after how many all that remembers is full: 64 of these images are 256 MiB of embeddings."""
AT_ONCE = 4
SIDE = 448
MIB = 2**20
GROWTH = {"api": 24 * MIB, "workers": 24 * MIB, "engine": 48 * MIB}
"""What may come to each kind of process with the other 700, whose embeddings are 2,800 MiB and whose pixels 400."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Its model has embeddings of 4 MiB for an image, and does little else."""
    work = tmp_path_factory.mktemp("at-length")
    directory = build_seeing_model("llava_siglip", work / "wide")
    text = {"model_type": "llama", "hidden_size": 1024, "head_dim": 16, "num_hidden_layers": 1}
    config = AutoConfig.for_model(
        **VISION_FAMILIES["llava_siglip"]
        | {"text_config": COMMON | text | {"max_position_embeddings": 2048}}
        | {"vision_config": SIGLIP | {"image_size": SIDE}}
    )
    torch.manual_seed(0)
    auto_class(config).from_config(config, dtype=torch.float32).save_pretrained(directory)
    settings = json.loads((directory / "preprocessor_config.json").read_text())
    settings["size"] = {"height": SIDE, "width": SIDE}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    entry = {"name": "wide", "source": str(directory), "dtype": "float32", "load": "startup", "memory": "16MiB"}
    with server_process("--models", str(write_models(work, {**entry, "threads": 1})), seconds=300) as running:
        yield running


def memory(served: Served) -> dict[str, int]:
    """Bytes of memory that no other process has, by kind of process."""
    server = psutil.Process(served.pid)
    found = {"api": server.memory_full_info().uss, "workers": 0, "engine": 0}
    for child in server.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # workers end and are replaced
            kind = "workers" if "server.images.worker" in child.cmdline() else "engine"
            found[kind] += child.memory_full_info().uss
    return found


def settled(served: Served) -> dict[str, int]:
    """The same once the server is idle and has given back what it does not need: when nothing shrinks any more."""
    found, steady = memory(served), 0
    while steady < 5:
        time.sleep(1)
        now = memory(served)
        steady = steady + 1 if sum(now.values()) >= sum(found.values()) - MIB else 0
        found = now
    return found


def picture(number: int) -> dict[str, Any]:
    """No two are alike, and all are scaled up to the model's own size."""
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, ("PNG", "JPEG", "WEBP", "GIF", "BMP")[number % 5])
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


async def show(url: str, first: int, end: int) -> None:
    """Ask about each of these images, some at a time."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        body = {
            "messages": [{"role": "user", "content": [picture(number), {"type": "text", "text": "?"}]}],
            "max_tokens": 2,
        }
        async with turns:
            answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] == (SIDE // 14) ** 2

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        await asyncio.gather(*(ask(client, number) for number in range(first, end)))


def test_memory_is_flat_once_all_that_remembers_images_is_full(served: Served) -> None:
    asyncio.run(show(served.url, 0, FULL))
    full = settled(served)
    asyncio.run(show(served.url, FULL, IMAGES))
    more = {kind: after - full[kind] for kind, after in settled(served).items()}
    assert full["workers"] and full["engine"] > 256 * MIB, full
    assert all(more[kind] <= GROWTH[kind] for kind in GROWTH), (more, full)
