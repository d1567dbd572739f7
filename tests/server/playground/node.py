"""The playground's pure modules, run in Node."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.places import ROOT

APP = ROOT / "server" / "playground" / "app"
OLDEST = (20, 19)
"""Node's first version that reads the modules as they are: it finds out by itself that they are modules."""


def _reason() -> str:
    """Why Node cannot run the modules, empty if it can."""
    node = shutil.which("node")
    if node is None:
        return "there is no Node here"
    said = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = (int(part) for part in re.findall(r"\d+", said)[:2])
    return "" if (major, minor) >= OLDEST else f"Node is {said.strip()}, older than v{OLDEST[0]}.{OLDEST[1]}"


REASON = _reason()
needs_node = pytest.mark.skipif(REASON != "", reason=REASON or "Node is there")


def in_node(script: str, given: Any) -> Any:
    """What a script leaves in `out`; it finds `given`, and `load(name)` for the modules below `app/`."""
    program = f"""
        const {{ readFileSync, writeSync }} = await import("node:fs");
        const given = JSON.parse(readFileSync(0, "utf8"));
        const load = (name) => import({json.dumps((APP / "").as_uri())} + "/" + name);
        let out;
        {script}
        // JSON that any reader takes, with halves of characters escaped
        writeSync(1, JSON.stringify(out));
    """
    command = [shutil.which("node") or "node", "--no-warnings", "--input-type=module", "--eval", program]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
