"""Images over HTTP, on a real server with a tiny model that sees: it says what transformers says of the same image."""

import base64
import http.server
import io
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from server.commands import cli
from tests.engine.test_oracle_images import IMAGE, oracle
from tests.server import patient
from tests.serving import running_server, write_models
from tests.vision_models import build_seeing_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_seeing_model("qwen2_5_vl", tmp_path_factory.mktemp("seeing"))


class Pictures(http.server.BaseHTTPRequestHandler):
    """A web server of pictures that counts who comes."""

    seen: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.seen.append(self.path)
        content = png(40, 60, seed=9)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def pictures() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()


@pytest.fixture(scope="module")
def server(directory: Path, pictures: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    work = tmp_path_factory.mktemp("models")
    common = {"source": str(directory), "dtype": "float32", "load": "startup", "memory": "16MiB", "threads": 1}
    remote = {"remote": [pictures.removeprefix("http://")], "private": ["127.0.0.0/8"]}
    models = write_models(
        work,
        {"name": "seeing", **common, "images": remote},
        {"name": "shut", **common, "images": {"remote": "off"}},
        {"name": "blind", "source": "random://llama?hidden_size=64&intermediate_size=64&num_hidden_layers=1&"
         "vocab_size=300&num_attention_heads=4", "load": "startup", "memory": "4MiB", "threads": 1},
    )  # fmt: skip
    with running_server("--models", str(models), seconds=300) as url:
        yield url


@pytest.fixture
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def png(height: int, width: int, seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def picture(content: bytes, **more: Any) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def expected(directory: Path, prompt: str, images: list[bytes], max_tokens: int) -> str:
    """What transformers' own processor and `generate` make of it; `{}` stands for an image."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    processor = Qwen2VLImageProcessorPil.from_pretrained(directory)
    options: dict[str, Any] = {}
    if images:
        found = processor([Image.open(io.BytesIO(content)) for content in images], return_tensors="pt")
        counts = [int(grid.prod()) // 4 for grid in found["image_grid_thw"]]
        spans = [f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>" for count in counts]
        prompt = prompt.format(*spans)
        options = {"pixel_values": found["pixel_values"], "image_grid_thw": found["image_grid_thw"]}
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
    if images:
        options["mm_token_type_ids"] = (ids == IMAGE).int()
    with torch.inference_mode():
        output = oracle(directory).generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, **options
        )
    return str(tokenizer.decode(output[0, ids.shape[1] :].tolist(), skip_special_tokens=True))


def ask(client: openai.OpenAI, *parts: dict[str, Any], model: str = "seeing", **options: Any) -> Any:
    messages: list[Any] = [{"role": "user", "content": list(parts)}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=12, **options)


def test_an_image_is_seen_as_by_transformers(client: openai.OpenAI, directory: Path) -> None:
    content = png(60, 90)
    answer = ask(client, text("What is "), picture(content), text("?"))
    wanted = expected(directory, "<|im_start|>user\nWhat is {}?<|im_end|>\n<|im_start|>assistant\n", [content], 12)
    assert answer.choices[0].message.content == wanted
    details = answer.usage.prompt_tokens_details.model_dump()
    assert details["image_tokens"] == 6 and answer.usage.prompt_tokens > 6


def test_several_images_in_several_turns_streamed(client: openai.OpenAI, directory: Path) -> None:
    images = [png(28, 28, 1), png(150, 30, 2), png(400, 400, 3)]
    messages: list[Any] = [
        {"role": "system", "content": "Look."},
        {"role": "user", "content": [picture(images[0]), picture(images[1]), text("both")]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [text("and"), picture(images[2])]},
    ]
    stream = client.chat.completions.create(
        model="seeing", messages=messages, temperature=0, max_tokens=12, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    prompt = (
        "<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\n{}{}both<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nand{}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert said == expected(directory, prompt, images, 12)
    # The last is brought down to the model's budget of 24 tokens.
    assert chunks[-1].usage.prompt_tokens_details.model_dump()["image_tokens"] == 1 + 5 + 16


def test_a_second_turn_finds_the_first_in_the_prefix_cache(server: str, client: openai.OpenAI) -> None:
    content = png(84, 84, 11)
    first = ask(client, picture(content), text("one and the same beginning"))
    again = ask(client, picture(content), text("one and the same beginning"))
    other = ask(client, picture(png(84, 84, 12)), text("one and the same beginning"))
    assert again.choices[0].message.content == first.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens >= 32
    assert other.usage.prompt_tokens_details.cached_tokens < 32
    for image, found in ((content, again), (png(84, 84, 13), None)):
        messages = [{"role": "user", "content": [picture(image), text("one and the same beginning")]}]
        body: dict[str, Any] = {"model": "seeing", "messages": messages, "return_cached_tokens": True}
        told = patient.post(f"{server}/tokenize", json=body).json()
        if found is None:
            assert told["cached_tokens"] < 32
        else:
            assert told["cached_tokens"] == found.usage.prompt_tokens_details.cached_tokens


def test_low_detail_takes_fewer_tokens_and_constraints_hold(client: openai.OpenAI) -> None:
    content = png(200, 200, 4)
    chosen = ask(client, picture(content), text("?"), extra_body={"choice": ["cat", "dog"]})
    assert chosen.choices[0].message.content in ("cat", "dog")
    low = ask(client, picture(content, detail="low"), text("?"))
    assert low.usage.prompt_tokens_details.model_dump()["image_tokens"] == 16  # already below what low leaves


def test_remote_images_come_from_where_they_may(client: openai.OpenAI, pictures: str, directory: Path) -> None:
    part = {"type": "image_url", "image_url": {"url": f"{pictures}/cat.png"}}
    answer = ask(client, part, text("?"))
    wanted = expected(directory, "<|im_start|>user\n{}?<|im_end|>\n<|im_start|>assistant\n", [png(40, 60, seed=9)], 12)
    assert answer.choices[0].message.content == wanted and Pictures.seen == ["/cat.png"]
    for model, url in (
        ("shut", f"{pictures}/cat.png"),
        ("seeing", "http://127.0.0.1:1/x.png"),
        ("seeing", "file:///etc/passwd"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, {"type": "image_url", "image_url": {"url": url}}, model=model)
        assert caught.value.param == "messages[0].content[0].image_url"
    assert Pictures.seen == ["/cat.png"]
    ask(client, text(f"![cat]({pictures}/cat.png) <img src='{pictures}/cat.png'>"))
    assert Pictures.seen == ["/cat.png"]


def refused(client: openai.OpenAI, *parts: dict[str, Any], **options: Any) -> Any:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, *parts, **options)
    return caught.value


def test_what_is_no_image_costs_one_request_a_400(client: openai.OpenAI) -> None:
    good = png(40, 40)
    alone = ask(client, picture(good), text("neighbour")).choices[0].message.content
    hostile = [
        good[: len(good) // 2],
        b"<svg/>",
        b"GIF89a" + b"\xff" * 20,
        png(1, 300),
        b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
    ]
    for content in hostile:
        error = refused(client, text("see"), picture(content))
        assert error.param == "messages[0].content[1].image_url" and error.code == "invalid_image"
        assert "0x" not in error.message and "/tmp" not in error.message
    assert ask(client, picture(good), text("neighbour")).choices[0].message.content == alone
    assert "at most 16 images, got 17" in refused(client, *[picture(good)] * 17).message
    assert "takes no images" in refused(client, picture(good), model="blind").message


def test_typed_placeholders_are_text(client: openai.OpenAI) -> None:
    words = "<|image_pad|><|vision_start|><|image_pad|>"
    answer = ask(client, text(words), picture(png(28, 28)), text(words))
    assert answer.usage.prompt_tokens_details.model_dump()["image_tokens"] == 1
    assert ask(client, text(words)).usage.prompt_tokens > 30


def test_the_model_says_that_it_sees(client: openai.OpenAI) -> None:
    models: dict[str, Callable[..., Any]] = {model.id: model for model in client.models.list().data}  # type: ignore[misc]
    assert models["seeing"].capabilities["input"] == ["text", "image"]  # type: ignore[attr-defined]
    assert models["blind"].capabilities["input"] == ["text"]  # type: ignore[attr-defined]


def test_the_benchmark_sends_images_and_splits_the_time_to_first_token(server: str, tmp_path: Path) -> None:
    options = ["--images", "2", "--pixels", "90x60", "--concurrency", "1", "--requests", "3", "--max-tokens", "4"]
    report = tmp_path / "report.json"
    command = ["bench", "serve", "--url", server, "--model", "seeing", *options, "--ignore-eos", "--json", str(report)]
    assert cli.main(command) == 0
    (level,) = json.loads(report.read_text())["levels"]
    split = level["ttft_split_ms"]
    assert level["mean_prompt_tokens"] > 12 and set(split) == {"fetch", "decode", "encode", "prefill"}
    assert split["decode"] > 0 and split["encode"] > 0 and split["prefill"] > 0
    assert sum(split.values()) == pytest.approx(level["ttft_mean_ms"])
