"""The README's example of an image, run as it stands: its image as a data URL, and from a host of ours over https."""

import base64
import http.server
import json
import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.places import ROOT
from tests.serving import server_process, write_models
from tests.test_images_end_to_end import expected, png
from tests.vision_models import build_seeing_model

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, the program, is not installed")

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
IMAGE = png(60, 90, seed=21)


class Pictures(http.server.BaseHTTPRequestHandler):
    """Has one picture."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(IMAGE)))
        self.end_headers()
        self.wfile.write(IMAGE)

    def log_message(self, *_: object) -> None:
        pass


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of localhost that no one else trusts, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@dataclass
class World:
    """Addresses of the picture and of a server that may fetch it."""

    url: str
    picture: str
    directory: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The server trusts the certificate as any program on OpenSSL can be told to, and its defaults are greedy."""
    work = tmp_path_factory.mktemp("readme")
    directory = build_seeing_model("qwen2_5_vl", work / "model")
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 1024  # the example asks for 500 tokens
    (directory / "config.json").write_text(json.dumps(config))
    cert, key = certificate(work)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as site:
        site.socket = context.wrap_socket(site.socket, server_side=True)
        threading.Thread(target=site.serve_forever, daemon=True).start()
        host = f"localhost:{site.server_port}"
        common = {"source": str(directory), "dtype": "float32", "load": "startup", "memory": "16MiB", "threads": 1}
        models = write_models(
            work,
            {"name": MODEL, **common, "sampling": {"temperature": 0},
             "images": {"remote": [host], "private": ["127.0.0.0/8", "::1/128"]}},
        )  # fmt: skip
        with server_process("--models", str(models), environment={"SSL_CERT_FILE": str(cert)}, seconds=300) as served:
            yield World(served.url, f"https://{host}/statue.png", directory)
        site.shutdown()


def example(server: str, image: str) -> str:
    """The README's code about this image on this server."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in blocks if "image_url" in block]
    code, images = re.subn(r'image = "https://.*"', f'image = "{image}"', code)
    assert images == 1 and "http://127.0.0.1:8000" in code and MODEL in code
    return str(code.replace("http://127.0.0.1:8000", server))


def test_the_readme_s_example_of_an_image(world: World) -> None:
    prompt = "<|im_start|>user\nDescribe this image in one sentence.{}<|im_end|>\n<|im_start|>assistant\n"
    said = expected(world.directory, prompt, [IMAGE], 500)
    data = "data:image/png;base64," + base64.b64encode(IMAGE).decode()
    for image in (data, world.picture):
        ran = subprocess.run(
            [sys.executable, "-c", example(world.url, image)], capture_output=True, text=True, timeout=120
        )
        assert ran.returncode == 0, ran.stderr
        assert f"content={said!r}" in ran.stdout
