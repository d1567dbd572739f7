"""What is released works where nothing of the source is: sdist, wheel, installation, answer."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from engine import version
from scripts.vendor import LIBRARIES
from tests.places import ROOT
from tests.serving import server_process

COMMIT = "0123456789ab"
NOT_OF_THE_SOURCE = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}


@dataclass(frozen=True)
class Release:
    """What was built, and a Python that has it installed from the wheel."""

    sdist: Path
    wheel: Path
    python: Path


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **NOT_OF_THE_SOURCE, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def copy_of_the_source(target: Path) -> None:
    """The files that git would commit, so that nothing else can be built in, nor a build leave anything here."""
    git = shutil.which("git")
    listed = run(git or "git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Build the sdist, of that the wheel, and install that into an environment of its own.

    What Headrace needs is not fetched again, torch alone being gigabytes: a line in the new environment names the
    packages of this one. Headrace itself is not found there, since this environment has it by a hook that only its own
    site directory runs.
    """
    place = tmp_path_factory.mktemp("release")
    copy_of_the_source(place / "source")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, place, cwd=place / "source", HEADRACE_COMMIT=COMMIT)
    (sdist,) = place.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    alone = ("--no-index", "--no-deps", "--no-build-isolation")
    run(*pip, "wheel", *alone, "--wheel-dir", place, unpacked, cwd=place)
    (wheel,) = place.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", place / "venv", cwd=place)
    python = place / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-index", "--no-deps", wheel, cwd=place)
    site = next((place / "venv" / "lib").glob("python*/site-packages"))
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return Release(sdist, wheel, python)


@pytest.mark.slow
def test_the_wheel_has_all_that_the_source_has(release: Release) -> None:
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("engine", "headrace", "server")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith((".d.ts", ".md"))
    }
    with zipfile.ZipFile(release.wheel) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licences = {Path(name).name for name in wheel.namelist() if "/licenses/" in name}
    assert packed == wanted | {"server/commit.txt", "server/config/models.yaml"}
    of_libraries = {f"LICENSE.{one.package.replace('@', '').replace('/', '-')}.txt" for one in LIBRARIES}
    assert licences == {"LICENSE"} | of_libraries


@pytest.mark.slow
def test_an_installation_knows_its_version_and_commit(release: Release, tmp_path: Path) -> None:
    where = run(release.python, "-c", "import engine, headrace, server; print(server.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(release.python.parents[1])
    command = release.python.with_name("headrace")
    assert run(command, "--version", cwd=tmp_path) == f"headrace {version()} ({COMMIT})\n"
    assert "smollm2" in run(command, "models", cwd=tmp_path)


@pytest.mark.slow
def test_an_installation_serves(release: Release, tmp_path: Path) -> None:
    """In a directory without anything, with the models that ship."""
    log = tmp_path / "log.txt"
    with server_process(
        environment=NOT_OF_THE_SOURCE, python=release.python, directory=tmp_path, log=log, seconds=240
    ) as served:
        body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 16}
        answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]
        page = httpx.get(served.url)
        assert page.status_code == 200
        module = re.search(r'src="([^"]+/main\.js)"', page.text)
        assert module and httpx.get(page.url.join(module[1])).status_code == 200
    assert "Traceback" not in log.read_text()
