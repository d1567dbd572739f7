"""`headrace keys new`, SIGHUP, and a server that other machines reach without keys."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import ConfigError
from server.commands.address import check_loopback
from server.commands.cli import main
from server.commands.serve import ServeSettings, run
from server.config.keys_file import load_keys_file
from server.edge.auth import digest_of
from tests.clocks import PATIENCE
from tests.places import ROOT
from tests.server import patient
from tests.server.fake_engine import SCRIPT_VARIABLE
from tests.server.fakes import wait_until


def test_a_new_key_and_its_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["keys", "new", "alice"]) == 0
    said = capsys.readouterr()
    key = said.out.strip()
    assert len(key) > 40 and key not in said.err
    path = tmp_path / "keys.yaml"
    path.write_text("keys:\n" + said.err.partition("\n")[2])
    assert [(entry.name, entry.digest) for entry in load_keys_file(path)] == [("alice", digest_of(key))]


def test_keys_are_added_to_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    made = []
    for name in ("alice", "bob"):
        assert main(["keys", "new", name, "--file", str(path)]) == 0
        made.append((name, digest_of(capsys.readouterr().out.strip())))
    assert [(entry.name, entry.digest) for entry in load_keys_file(path)] == made
    assert path.stat().st_mode & 0o777 == 0o600 and [file.name for file in tmp_path.iterdir()] == ["keys.yaml"]
    before = path.read_text()
    for name in ("alice", "", "a b", "x" * 80):
        assert main(["keys", "new", name, "--file", str(path)]) == 1
        said = capsys.readouterr()
        assert not said.out and "headrace: " in said.err
    assert path.read_text() == before and [file.name for file in tmp_path.iterdir()] == ["keys.yaml"]


@pytest.mark.parametrize(
    "text",
    [
        "keys: []",
        "keys: []\n",
        "# team\nkeys:\n  - name: a\n    sha256: {0}",
        "\ufeffkeys:\r\n  - name: a\r\n    sha256: {0}\r\n",
    ],
)
def test_keys_are_added_to_files_of_several_kinds(text: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_bytes(text.format("a" * 64).encode())
    before = load_keys_file(path)
    assert main(["keys", "new", "bob", "--file", str(path)]) == 0
    after = load_keys_file(path)
    assert after[:-1] == before and after[-1].name == "bob"


def test_a_file_that_it_cannot_add_to_stays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    for text in ('{"keys": [{"name": "a", "sha256": "' + "1" * 63 + 'a"}]}', "nonsense"):
        path.write_text(text)
        assert main(["keys", "new", "bob", "--file", str(path)]) == 1
        assert not capsys.readouterr().out and path.read_text() == text
    assert main(["keys", "new", "bob", "--file", str(tmp_path / "missing" / "keys.yaml")]) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "0", "::ffff:0.0.0.0"])
def test_without_keys_no_other_machine_is_served(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(ServeSettings(models=(), host=host), None)  # type: ignore[arg-type]
    assert "no key" in str(caught.value) and "--insecure" in str(caught.value.hint)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1.2.3", "localhost", "::1", "::ffff:127.0.0.1", "no-such-host.invalid"]
)
def test_this_machine_is(host: str) -> None:
    check_loopback(host, 0)


def test_sighup_reads_the_keys_again(tmp_path: Path, smollm2_dir: Path) -> None:
    path, port_file = tmp_path / "keys.yaml", tmp_path / "port"
    assert main(["keys", "new", "alice", "--file", str(path)]) == 0
    environment = {
        **os.environ,
        SCRIPT_VARIABLE: json.dumps({"model_dir": str(smollm2_dir), "token_ids": [504]}),
        "SERVE_FAKE": json.dumps({"keys_file": str(path), "host": "0.0.0.0"}),
    }
    command = [sys.executable, "-m", "tests.server.serve_fake", str(port_file)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        wait_until(lambda: port_file.exists() and port_file.read_text())
        url = f"http://127.0.0.1:{port_file.read_text()}/v1/models"

        def status() -> int:
            return patient.get(url, headers={"Authorization": "Bearer bob"}).status_code

        wait_until(lambda: status() == 401)
        stamp = path.stat().st_mtime_ns
        path.write_text(f"keys:\n- {{name: bob, sha256: {digest_of('bob').hex()}}}\n")
        os.utime(path, ns=(stamp, stamp))
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: status() == 200)
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
