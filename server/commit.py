"""Which commit this Headrace is, for `headrace --version` and reports of faults."""

import shutil
import subprocess
from pathlib import Path

from engine import version

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = Path(__file__).with_name("commit.txt")
"""What a build wrote (`setup.py`); a checkout has no such file."""
_GIT_SECONDS = 5.0


def version_line() -> str:
    """Version, and the commit in brackets where it is known."""
    commit = known_commit()
    return f"headrace {version()} ({commit})" if commit else f"headrace {version()}"


def known_commit() -> str | None:
    """The commit that a build wrote, or that git says of the checkout this runs from; `-dirty` if that was changed."""
    if WRITTEN.is_file():
        return WRITTEN.read_text(encoding="utf-8").strip() or None
    git = shutil.which("git")
    # Only where the packages lie in a checkout of their own: an environment may lie in that of another project.
    if git is None or not ((ROOT / ".git").exists() and (ROOT / "pyproject.toml").is_file()):
        return None
    command = [git, "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
