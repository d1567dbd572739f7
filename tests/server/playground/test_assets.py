"""The playground's files: their addresses, their hashes, how they are cached, what a browser may do with them."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.playground.assets import ENTRY, MEDIA_TYPES, PREFIX, Asset, Assets, first_modules, load_assets
from server.playground.pages import POLICY
from tests.places import ROOT
from tests.server import patient
from tests.server.fakes import RunningServer, Script, running_server

PLAYGROUND = ROOT / "server" / "playground"
FIRST_VIEW_BYTES = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[RunningServer]:
    script = Script(model_dir=str(smollm2_dir), token_ids=[504])
    with (
        pytest.MonkeyPatch.context() as patch,
        running_server(patch, tmp_path_factory.mktemp("pages"), script, api_keys=("secret",)) as running,
    ):
        yield running


def linked(page: str) -> list[str]:
    """The addresses that the page names."""
    return re.findall(r'(?:href|src)="([^"]+)"', page)


def test_the_page_and_its_files_need_no_key_and_all_else_does(server: RunningServer) -> None:
    page = patient.get(f"{server.url}/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    for address in linked(page.text):
        assert patient.get(f"{server.url}/{address}").status_code == 200, address
    assert patient.get(f"{server.url}/v1/models").status_code == 401
    assert patient.get(f"{server.url}{PREFIX}nothing/app/main.js").status_code == 401
    with_key = {"authorization": "Bearer secret"}
    missing = httpx.get(f"{server.url}{PREFIX}nothing/app/main.js", headers=with_key, timeout=60)
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("path", ["../pages.py", "..%2fpages.py", "../assets.py", "app/../../README.md", "README.md"])
def test_nothing_but_the_listed_files_is_served(server: RunningServer, path: str) -> None:
    directory = linked(patient.get(f"{server.url}/").text)[0].rpartition("icon.svg")[0]
    with server.connect() as connection:
        request = f"GET /{directory}{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        connection.sendall(f"{request}Authorization: Bearer secret\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 404")


def test_every_answer_has_the_policy_and_files_are_kept_for_ever(server: RunningServer) -> None:
    page = patient.get(f"{server.url}/")
    assert page.headers["cache-control"] == "no-cache"
    for address in ["", *linked(page.text)]:
        headers = patient.get(f"{server.url}/{address}").headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert not address or headers["cache-control"] == "public, max-age=31536000, immutable"
    for needed in ("default-src 'none'", "trusted-types 'none'", "frame-ancestors 'none'"):
        assert needed in POLICY
    assert "unsafe" not in POLICY and "http" not in POLICY


def test_what_has_not_changed_is_not_sent_again(server: RunningServer) -> None:
    page = patient.get(f"{server.url}/")
    same = httpx.get(f"{server.url}/", headers={"if-none-match": page.headers["etag"]}, timeout=60)
    assert same.status_code == 304 and not same.content and same.headers["etag"] == page.headers["etag"]
    other = httpx.get(f"{server.url}/", headers={"if-none-match": 'W/"0"'}, timeout=60)
    assert other.status_code == 200


def test_head_answers_as_get_does_without_a_body(server: RunningServer) -> None:
    address = f"{server.url}/"
    head, get = httpx.head(address, timeout=60), httpx.get(address, timeout=60)
    assert head.status_code == 200 and not head.content
    assert {name: head.headers[name] for name in ("etag", "content-type", "content-length")} == {
        name: get.headers[name] for name in ("etag", "content-type", "content-length")
    }


@pytest.mark.parametrize(
    ("accepted", "compressed"), [("gzip, br", True), ("identity", False), ("gzip;q=0", False), ("*", True)]
)
def test_files_are_compressed_for_those_who_take_it(server: RunningServer, accepted: str, compressed: bool) -> None:
    address = next(one for one in linked(patient.get(f"{server.url}/").text) if one.endswith("preact.js"))
    answer = httpx.get(f"{server.url}/{address}", headers={"accept-encoding": accepted}, timeout=60)
    assert (answer.headers.get("content-encoding") == "gzip") == compressed
    assert answer.content == (PLAYGROUND / "vendor" / "preact.js").read_bytes()
    assert answer.headers["vary"] == "accept-encoding"


def test_without_the_playground_there_is_nothing(
    smollm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(model_dir=str(smollm2_dir), token_ids=[504])
    with running_server(monkeypatch, tmp_path, script, playground=False) as running:
        assert patient.get(f"{running.url}/").status_code == 405  # there is POST alone
        assert "browser" not in running.console.getvalue()


def test_the_banner_names_the_page(server: RunningServer) -> None:
    assert f"Try it in a browser at {server.url}/ or with:" in server.console.getvalue()


def test_a_changed_file_changes_all_addresses(tmp_path: Path) -> None:
    def assets(text: str) -> Assets:
        (tmp_path / "index.html").write_text('<script src="ROOT/app/main.js"></script>\n    <!-- PRELOADS -->\n')
        (tmp_path / "app").mkdir(exist_ok=True)
        (tmp_path / "app" / "main.js").write_text('import "./other.js";\n')
        (tmp_path / "app" / "other.js").write_text(text)
        (tmp_path / "notes.md").write_text("not served")
        load_assets.cache_clear()
        return load_assets(tmp_path)

    one, same, other = assets("1"), assets("1"), assets("2")
    load_assets.cache_clear()
    assert one == same and not set(one.files) & set(other.files)
    page = one.page.body.decode()
    assert {f"/{address}" for address in linked(page)} == set(one.files)
    assert page.count('rel="modulepreload"') == 1 and len(one.files) == 2


def test_the_modules_of_the_first_view_are_found() -> None:
    contents = {
        ENTRY: b'import { a } from "./a.js";\nimport {\n  b,\n} from "../vendor/b.js";\nf(() => import("./c.js"));\n',
        "app/a.js": b'export { d } from "./d.js";\n',
        "app/c.js": b"",
        "app/d.js": b"",
        "vendor/b.js": b'import{x as y}from"./e.js";export{y}',
        "vendor/e.js": b"",
    }
    assert sorted(first_modules(contents)) == ["app/a.js", "app/d.js", ENTRY, "vendor/b.js", "vendor/e.js"]
    with pytest.raises(KeyError, match="not there"):
        first_modules({ENTRY: b'import "./gone.js";'})


def test_the_first_view_is_small() -> None:
    assets = load_assets()
    named = [f"/{address}" for address in linked(assets.page.body.decode())]
    sizes = [len(asset.compressed or asset.body) for asset in (assets.page, *(assets.files[name] for name in named))]
    assert sum(sizes) <= FIRST_VIEW_BYTES, f"{sum(sizes)} bytes"


def test_bodies_that_do_not_shrink_are_sent_as_they_are() -> None:
    assert Asset.of(b"short", "text/plain").compressed is None
    long = b"a line\n" * 500
    assert gzip.decompress(Asset.of(long, "text/plain").compressed or b"") == long


def test_every_kind_of_file_is_packaged() -> None:
    """What is served is what pyproject.toml lets into the package, and all else here is for those who change it."""
    text = (ROOT / "pyproject.toml").read_text()
    packaged = set(re.findall(r'"\*\*/\*(\.\w+)"', text.partition("\nserver = [")[2].partition("]")[0]))
    used = {path.suffix for path in PLAYGROUND.rglob("*") if path.suffix in MEDIA_TYPES}
    assert used <= packaged
