"""SIGHUP where there are no keys to be read again: with a terminal, and without."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.clocks import PATIENCE
from tests.places import ROOT
from tests.server import patient
from tests.server.fake_engine import SCRIPT_VARIABLE
from tests.server.fakes import wait_until

ANSWER: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 100}


def has_this_terminal() -> None:
    """In a process that begins: its standard input is the terminal that sends it SIGHUP when it goes.

    It listens to that even where the tests do not, as under nohup.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def a_server(
    directory: Path, smollm2_dir: Path, stdin: int, stderr: IO[str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A program of its own and its address; it is awaited. Answers stand still until there is a file `gate`."""
    port_file = directory / "port"
    script = {"model_dir": str(smollm2_dir), "token_ids": [504], "holds": {-1: 2}, "gate": str(directory / "gate")}
    environment = os.environ | {
        SCRIPT_VARIABLE: json.dumps(script),
        "SERVE_FAKE": json.dumps({"drain_seconds": PATIENCE}),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.serve_fake", str(port_file)],
        cwd=ROOT, env=environment, stdin=stdin, stderr=stderr, start_new_session=True,
        preexec_fn=has_this_terminal if stdin >= 0 else None,
    )  # fmt: skip
    try:
        wait_until(lambda: port_file.exists() and port_file.read_text())
        url = f"http://127.0.0.1:{port_file.read_text()}"
        wait_until(lambda: patient.get(f"{url}/readyz").status_code == 200)
        yield process, url
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_without_a_terminal_it_says_so_and_goes_on(tmp_path: Path, smollm2_dir: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as out, a_server(tmp_path, smollm2_dir, subprocess.DEVNULL, out) as (process, url):
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "SIGHUP: there is no file of keys" in log.read_text())
        assert patient.get(f"{url}/readyz").status_code == 200


def test_a_terminal_that_goes_ends_it_in_good_order(tmp_path: Path, smollm2_dir: Path) -> None:
    ours, its = os.openpty()
    with a_server(tmp_path, smollm2_dir, its) as (process, url):
        os.close(its)
        with patient.stream("POST", f"{url}/v1/chat/completions", json=ANSWER) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.close(ours)  # the kernel tells of it
            wait_until(lambda: patient.get(f"{url}/readyz").status_code == 503)
            process.send_signal(signal.SIGHUP)  # and so does the shell
            (tmp_path / "gate").touch()
            rest = "\n".join(lines)
        assert '"finish_reason":"length"' in rest and "[DONE]" in rest
        assert process.wait(PATIENCE) == 0
