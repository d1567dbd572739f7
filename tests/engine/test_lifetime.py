"""No process outlives the one that started it, not even one whose first line comes after the other's last."""

import os
import subprocess
import sys

import pytest

from engine.lifetime import PARENT_VARIABLE, child_environment

CODE = f"""
import os
from engine.lifetime import die_with_parent
die_with_parent()
print("lives", {PARENT_VARIABLE!r} in os.environ, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize("named", ["this process", "one that has ended", "nobody"])
def test_a_child_ends_whose_parent_has_ended_before_it_began(named: str) -> None:
    environment = child_environment()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    if named == "one that has ended":
        environment[PARENT_VARIABLE] = str(ended.pid)
    if named == "nobody":
        del environment[PARENT_VARIABLE]
    assert environment.get(PARENT_VARIABLE, str(os.getpid())) in (str(os.getpid()), str(ended.pid))
    child = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=False)
    lives = named != "one that has ended"
    assert (child.returncode, child.stdout) == ((0, "lives False\n") if lives else (1, "")), child.stderr
