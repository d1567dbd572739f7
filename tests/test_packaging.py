"""What installs and ships Headrace agrees with the package: pins, make targets, the container."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from scripts import lock
from tests.places import ROOT

DOCKERFILE = (ROOT / "Dockerfile.cuda").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]


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


def copied_from_the_source() -> set[str]:
    """What the Dockerfile's COPY takes from the repository, not from its first stage."""
    lines = [line for line in instructions("COPY") if not line.startswith("--from=")]
    return {path for line in lines for path in line.split()[:-1]}


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
    copied = copied_from_the_source()
    packages = {pattern.rstrip("*") for pattern in SETUPTOOLS["packages"]["find"]["include"]}
    assert packages | {"pyproject.toml", "setup.py", "models.yaml"} <= copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert any(Path(path).is_relative_to(place) for place in allowed), path


def test_the_container_serves_as_documented() -> None:
    from server.commands.cli import build_parser
    from server.routes import health

    assert instructions("FROM") == ["${BASE} AS build", "${BASE}"]
    assert instructions("ARG")[0] == "BASE=ubuntu:24.04"
    assert instructions("USER") == ["10001:10001"] and "useradd --uid 10001 --gid 10001" in DOCKERFILE
    assert instructions("EXPOSE") == ["8000"] and instructions("VOLUME") == ["/data"]
    entry = json.loads(instructions("ENTRYPOINT")[0])
    assert entry[-1] in PROJECT["scripts"]
    options = build_parser().parse_args(json.loads(instructions("CMD")[0]))
    assert (options.host, options.port) == ("0.0.0.0", 8000)
    asked = re.search(r":8000(/\w+)", instructions("HEALTHCHECK")[0])
    assert asked and asked[1] in {route.path for route in health.router.routes}
    environment = dict(pair.split("=", 1) for pair in instructions("ENV")[0].split())
    for name in ("HF_HOME", "HEADRACE_CACHE", "TRITON_CACHE_DIR"):
        assert environment[name].startswith("/data/")


def test_the_container_says_what_it_is() -> None:
    prefix = "org.opencontainers.image."
    labels = dict(re.findall(rf'{re.escape(prefix)}(\w+)="([^"]*)"', instructions("LABEL")[0]))
    assert labels["version"] == PROJECT["version"] and labels["title"] == PROJECT["name"]
    assert labels["licenses"].startswith(PROJECT["license"])
    assert labels["revision"] == "${COMMIT}" and instructions("ARG").count('COMMIT=""') == 2


def test_the_container_installs_only_what_is_locked() -> None:
    installs = [part for line in instructions("RUN") for part in line.split("&&") if "pip install" in part]
    assert len(installs) == 2 and all("--no-deps" in part for part in installs)
    assert "--require-hashes" in installs[0] and "--no-index" in installs[1]
    assert str(lock.LOCK.relative_to(ROOT)) in copied_from_the_source()


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
    for name in ("Makefile", "Dockerfile.cuda", "constraints.txt", "pyproject.toml", "setup.py", "scripts/install.py",
                 "scripts/lock.py", ".ci/run", ".github/workflows/ci.yml", str(lock.LOCK)):  # fmt: skip
        text = (ROOT / name).read_text()
        assert not re.search(r"index-url|https?://(?!127\.0\.0\.1)", text), name


def test_the_licence_is_the_one_that_is_declared() -> None:
    # MIT is that of the playground's libraries, which are in the wheel (tests/test_release.py).
    assert PROJECT["license"] == "Apache-2.0 AND MIT"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


def test_the_workflow_runs_what_ci_runs_on_each_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = workflow["jobs"].values()
    commands = {step["run"] for job in jobs for step in job["steps"] if "run" in step}
    assert commands == set(re.findall(r"^make .+$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    supported = SpecifierSet(PROJECT["requires-python"])
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert matrix == [f"3.{minor}" for minor in range(5, 30) if f"3.{minor}" in supported]


def test_the_lock_agrees_with_the_pins_and_lacks_nothing() -> None:
    locked = lock.read_lock()
    assert not list(lock.faults(locked))
    assert lock.LOCK.read_text()[: len(lock.HEAD)] == lock.HEAD
    # That one is a list of others, and holds nothing.
    assert {entry.name for entry in locked.values() if entry.licence == lock.UNTOLD} == {"cuda-toolkit"}
    assert len(locked["torch"].hashes) == len(locked["pydantic-core"].hashes) == len(lock.PYTHONS)


def test_a_lock_that_has_gone_stale_is_noticed() -> None:
    locked = lock.read_lock()
    locked["torch"].version = "2.12.0"
    del locked["h11"]
    locked["left-pad"] = lock.Locked("left-pad", "1.0", "MIT")
    said = "\n".join(lock.faults(locked))
    assert "torch is 2.12.0" in said and "h11 is missing" in said and "left-pad is needed by nothing" in said


def test_a_line_that_no_entry_explains_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text(lock.LOCK.read_text() + "httpx>=0.28\n")
    with pytest.raises(ValueError, match="httpx"):
        lock.read_lock(tmp_path / "lock.txt")
