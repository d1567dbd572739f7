"""The suites: where each comes from, how it is run, and what its report says.

All are pinned, and installed where they disturb nobody: Python's in `.venv-compat`, npm's in `.venv-compat/node`.

- llm-comply: https://pypi.org/project/llm-comply
- CompatCanary: https://www.npmjs.com/package/compatcanary
- openai-python's own tests of its client's methods, from its source distribution, which want a server to talk to
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

from tests.places import ROOT

Outcomes = dict[str, str | None]
"""By test: what is wrong, None where it passes. Tests that a suite itself skips are left out."""

VENV = ROOT / ".venv-compat"
COMPLY = "llm-comply==0.5.0"
CANARY = "compatcanary@0.2.2"
OPENAI = "openai==3.54.0"
OPENAI_TESTS = ("tests/api_resources/chat/test_completions.py", "tests/api_resources/test_completions.py",
                "tests/api_resources/test_models.py")  # fmt: skip
OPENAI_NEEDS = (
    "pytest==9.2.0",
    "pytest-asyncio==1.5.0",
    "inline-snapshot==0.36.1",
    "rich==15.0.0",
    "dirty-equals==0.11",
)
NOT_OURS = "update or delete or (chat and (retrieve or list))"
"""Completions that OpenAI has stored, and models that it has tuned."""


class Missing(Exception):
    """What a suite needs and this machine has not."""


def run_comply(base_url: str, model: str) -> Outcomes:
    """llm-comply's tests of chat completions."""
    command = [python().with_name("llm-comply"), "--format", "openai-chat", "-u", base_url, "-m", model, "-k", "none"]
    report = json.loads(output_of([*command, "--json", "--timeout", "300"]))
    return {
        result["id"]: None if result["status"] == "passed" else "; ".join(result.get("errors", ())) or result["status"]
        for result in report["results"]
        if result["status"] != "skipped"
    }


def run_canary(base_url: str, model: str) -> Outcomes:
    """CompatCanary's probes of chat completions."""
    npm = shutil.which("npm")
    if npm is None:
        raise Missing("npm is not installed")
    home = VENV / "node"
    if not (home / "node_modules" / "compatcanary").is_dir():
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run([npm, "install", "--silent", "--prefix", home, CANARY], check=True)
    binary = home / "node_modules" / ".bin" / "compatcanary"
    command = [binary, "scan", "--base-url", base_url, "--model", model, "--profile", "chat"]
    report = json.loads(output_of([*command, "--format", "json", "--timeout", "300"]))
    return {result["id"]: None if result["status"] == "pass" else result["summary"] for result in report["results"]}


def run_openai(base_url: str, model: str) -> Outcomes:
    """openai-python's tests of the methods that call what is served here. They name OpenAI's models."""
    source = openai_source()
    report = source / "report.xml"
    command = [python(), "-m", "pytest", *OPENAI_TESTS, "-o", "addopts=", "-q", "-k", f"not ({NOT_OURS})"]
    environment = {**os.environ, "TEST_API_BASE_URL": base_url}
    subprocess.run([*command, f"--junitxml={report}"], cwd=source, env=environment, stdout=subprocess.DEVNULL)
    cases = ElementTree.parse(report).iter("testcase")
    return {f"{case.get('classname')}::{case.get('name')}": fault_of(case) for case in cases}


def fault_of(case: ElementTree.Element) -> str | None:
    """What pytest says of a test's failure."""
    for kind in ("failure", "error"):
        if (element := case.find(kind)) is not None:
            return (element.get("message") or kind).splitlines()[0]
    return None


def python() -> Path:
    """Python of `.venv-compat`, which is made first if it is not there."""
    binary = VENV / "bin" / "python"
    if not (VENV / ".installed").exists():
        print(f"installing {COMPLY} and {OPENAI} into {VENV.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        install = [binary, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, COMPLY, OPENAI.replace("==", "[aiohttp]=="), *OPENAI_NEEDS], check=True)
        (VENV / ".installed").touch()
    return binary


def openai_source() -> Path:
    """The unpacked source distribution of openai-python, whose tests are not in the wheel."""
    folder = VENV / OPENAI.replace("==", "-")
    if not folder.is_dir():
        download = [python(), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*download, "--dest", VENV, OPENAI], check=True)
        with tarfile.open(f"{folder}.tar.gz") as archive:
            archive.extractall(VENV, filter="data")
    return folder


def output_of(command: list[str | Path]) -> str:
    """What a suite prints; its exit code says again what the report says."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout


SUITES: dict[str, Callable[[str, str], Outcomes]] = {
    "llm-comply": run_comply,
    "compatcanary": run_canary,
    "openai-python": run_openai,
}
