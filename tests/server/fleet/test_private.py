"""Directories of servers: whose server was killed, those go with the next start; all others stay."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.fleet.private import LOCK, PrivateDirectory, remove_left_behind

HOLD = """
import sys, time
from server.fleet.private import PrivateDirectory
print(PrivateDirectory().path, flush=True)
time.sleep(600)
"""


def test_what_a_killed_server_left_goes_and_what_others_have_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ours = PrivateDirectory()
    assert ours.path.stat().st_mode & 0o777 == 0o700
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    (theirs / "1").mkdir()
    others = [tmp_path / "headrace-notes", tmp_path / "headrace-link"]
    others[0].mkdir()
    others[1].symlink_to(ours.path)
    remove_left_behind(tmp_path)
    assert theirs.is_dir() and ours.path.is_dir()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    later = PrivateDirectory()
    assert not theirs.exists()
    assert all(path.exists() for path in (*others, ours.path / LOCK, later.path / LOCK))
    for one in (ours, later):
        one.remove()
        one.remove()
        assert not one.path.exists()


def test_it_does_without_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*given: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("server.fleet.private.fcntl.flock", none)
    directory = PrivateDirectory()
    assert directory.path.is_dir()
    directory.remove()
    assert not list(tmp_path.iterdir())
