"""Check the types of the playground's modules with TypeScript: `python -m scripts.check_pages`.

TypeScript and the types of the libraries come from npm, into `.node`, at the versions of this file and of
`scripts.vendor`. Where there is no npm, or it reaches no registry, this says so and is no failure: the modules run as
they are, and nothing of this is needed to serve them.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from scripts.vendor import LIBRARIES

ROOT = Path(__file__).resolve().parent.parent
NODE = ROOT / ".node"
TOOLS = {"typescript": "7.0.2", "axe-core": "4.14.1"}
"""What is only for checks: axe-core judges the accessibility of pages in the tests."""

CLIENTS = {"openai": "6.49.0", "@huggingface/inference": "4.13.30"}
"""Libraries that the playground writes programs for, which tests run."""


def wanted() -> dict[str, str]:
    """Packages and their versions."""
    return TOOLS | {library.package: library.version for library in LIBRARIES}


def install(packages: Mapping[str, str] | None = None) -> bool:
    """Put packages, `wanted` if none are given, into `.node`; whether they are there."""
    packages = packages or wanted()
    if {name: _installed_version(name) for name in packages} == packages:
        return True
    npm = shutil.which("npm")
    if npm is None:
        print("npm is missing: the types of the playground's modules are not checked")
        return False
    NODE.mkdir(exist_ok=True)
    (NODE / "package.json").write_text(json.dumps({"private": True}), encoding="utf-8")
    named = [f"{name}@{version}" for name, version in packages.items()]
    command = [npm, "install", "--silent", "--no-save", "--no-package-lock", "--prefix", str(NODE), *named]
    if subprocess.run(command, check=False).returncode != 0:
        print(f"npm could not install {', '.join(packages)}: what needs them is not checked")
        return False
    return True


def _installed_version(name: str) -> str | None:
    path = NODE / "node_modules" / name / "package.json"
    return json.loads(path.read_text(encoding="utf-8"))["version"] if path.exists() else None


def main() -> int:
    """Check; the exit code."""
    node = shutil.which("node")
    if node is None or not install():
        if node is None:
            print("Node is missing: the types of the playground's modules are not checked")
        return 0
    compiler = NODE / "node_modules" / ".bin" / "tsc"
    return subprocess.run([str(compiler), "--project", str(ROOT / "tsconfig.json")], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
