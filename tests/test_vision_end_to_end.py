"""Families that see, over HTTP on a real server: it says what transformers says of the same images and words."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from tests.serving import running_server, write_models
from tests.vision_models import Eyes, build_seeing_model, noise, oracle

FAMILIES = ["qwen3_vl", "mllama", "gemma3_vision", "smolvlm", "pixtral", "llava_onevision"]
"""Those whose prompts or images the server treats in ways of their own."""
Server = tuple[str, dict[str, Eyes]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    work = tmp_path_factory.mktemp("families")
    eyes = {family: Eyes(family, build_seeing_model(family, work / family)) for family in FAMILIES}
    common = {"dtype": "float32", "load": "startup", "memory": "16MiB", "threads": 1}
    entries = [{"name": family, "source": str(work / family), **common} for family in FAMILIES]
    with running_server("--models", str(write_models(work, *entries)), seconds=600) as url:
        yield url, eyes


def part(image: Image.Image, **more: Any) -> dict[str, Any]:
    out = io.BytesIO()
    image.save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def expected(eyes: Eyes, prompt: str, images: list[Image.Image]) -> tuple[list[int], str]:
    """The prompt's tokens as transformers' own processor has them, and what `generate` makes of it."""
    seeing = eyes.seeing
    tokenizer = Tokenizer.from_file(str(eyes.directory / "tokenizer.json"))
    before, behind = seeing.around
    shown = [before + seeing.text(eyes.processor.pil, image) + behind for image in images]
    ids = tokenizer.encode(prompt.format(*shown), add_special_tokens=False).ids
    batch = torch.tensor([ids])
    more = seeing.inputs(eyes.processor.pil, ids, images)
    with torch.inference_mode():
        output = oracle(eyes.directory).generate(
            batch, attention_mask=torch.ones_like(batch), max_new_tokens=10, do_sample=False, **more
        )
    return ids, str(tokenizer.decode(output[0, len(ids) :].tolist(), skip_special_tokens=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_images_in_two_turns(server: Server, family: str) -> None:
    url, all_eyes = server
    eyes = all_eyes[family]
    images = [noise(60, 90, 1), noise(150, 40, 2)]
    messages: list[Any] = [
        {"role": "user", "content": [text("What is "), part(images[0]), text("?")]},
        {"role": "assistant", "content": "A cat"},
        {"role": "user", "content": [part(images[1]), text("and this?")]},
    ]
    prompt = (
        "<|im_start|>user\nWhat is {}?<|im_end|>\n<|im_start|>assistant\nA cat<|im_end|>\n"
        "<|im_start|>user\n{}and this?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids, said = expected(eyes, prompt, images)
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(model=family, messages=messages, temperature=0, max_tokens=10)
    assert answer.choices[0].message.content == said
    assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)
    counted = httpx.post(f"{url}/tokenize", json={"model": family, "messages": messages}, timeout=60).json()
    assert counted["tokens"] == ids and counted["count"] == len(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_little_detail_is_never_more(server: Server, family: str) -> None:
    url, _ = server
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def tokens(detail: str) -> int:
        messages: list[Any] = [{"role": "user", "content": [part(noise(300, 200), detail=detail), text("?")]}]
        answer = client.chat.completions.create(model=family, messages=messages, temperature=0, max_tokens=1)
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        return int(answer.usage.prompt_tokens_details.model_dump()["image_tokens"])

    assert 0 < tokens("low") <= tokens("high") == tokens("auto")
