"""Batch files: what is read, what is refused, and that nothing is answered twice or lost, whoever is killed when."""

import asyncio
import functools
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from engine.errors import ConfigError
from server.commands.cli import main
from server.offline import batch
from server.offline.batch import BatchRequest, Output, answer_all, look_through, read_requests
from server.offline.local import LocalServer, RefusedError, Reply
from tests.clocks import PATIENCE, wait_until
from tests.places import ROOT

TINY = "random://llama?hidden_size=64&intermediate_size=64&num_hidden_layers=2&vocab_size=300&num_attention_heads=4"


def line(custom_id: str = "a", **changes: Any) -> bytes:
    whole = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}, **changes}
    return json.dumps({key: value for key, value in whole.items() if value is not None}).encode() + b"\n"


def written(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(lines))
    return path


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", line("a"), b"\n", line("ü", method=None), line("c")[:-1])
    assert [request.custom_id for request in read_requests(source)] == ["a", "ü", "c"]
    contents = look_through(written(source, line("a", body={"model": "m"}), line("b", body={"model": 3})))
    assert (contents.ids, contents.models) == ({"a", "b"}, {"m"})


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (b"{", "not JSON"),
        (b"[1]\n", "a line is an object"),
        (line(body=None), "a line is an object"),
        (line(body="text"), "a line is an object"),
        (line(custom_id=""), "custom_id is text of 1 to 512 characters"),
        (line(custom_id=7), "custom_id is text of 1 to 512 characters, got 7"),
        (line(custom_id="x" * 513), "custom_id is text"),
        (line(method="GET"), 'method is POST, got "GET"'),
        (line(url="/v1/embeddings"), "url is one of /v1/chat/completions, /v1/completions"),
        (line(customid="a"), "no 'customid'"),
        (line("good"), "'good' twice"),
        (line(body={"prompt": "x", "stream": True}), "answers of a batch come whole, got stream: true"),
        (b"\xff\n", "not JSON"),
    ],
)
def test_what_is_no_request_is_named_with_its_line(tmp_path: Path, broken: bytes, said: str) -> None:
    source = written(tmp_path / "in.jsonl", line("good"), broken)
    with pytest.raises(ConfigError) as caught:
        look_through(source)
    assert said in str(caught.value) and ("twice" in said or "in.jsonl:2" in str(caught.value))


def reply(status: int = 200, **body: Any) -> Reply:
    return Reply(status, {"x-request-id": "req-1"}, json.dumps(body).encode())


def test_an_output_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    output = Output(path)
    output.write(BatchRequest("a", "/v1/completions", {}), reply(text="\ud800 ü"))
    output.write(BatchRequest("b", "/v1/completions", {}), reply(400, error={}))
    with pytest.raises(ConfigError, match="another run"):
        Output(path)
    output.close()
    with path.open("ab") as file:
        file.write(b'{"id": "batch_req-3", "custom_id": "c", "respon')  # killed in the middle of a line
    again = Output(path)
    assert (again.done, again.failed) == ({"a", "b"}, 1)
    again.write(BatchRequest("c", "/v1/completions", {}), reply())
    again.close()
    lines = [json.loads(one) for one in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0]["response"]["body"] == {"text": "\ud800 ü"}
    assert [one["custom_id"] for one in lines] == ["a", "b", "c"]
    assert lines[1]["response"]["status_code"] == 400 and lines[0]["error"] is None


class Failing:
    """Answers with these statuses in turn, and with the last one from then on."""

    name = "failing"

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.asked = list(statuses), 0

    async def ask(self, path: str, body: bytes) -> Reply:
        self.asked += 1
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return reply(status, error={"message": "the engine is gone"})


@pytest.mark.parametrize("statuses", [(200,), (400,), (500,), (503, 503, 200)])
def test_an_engine_that_comes_back_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: tuple[int, ...]
) -> None:
    monkeypatch.setattr(batch, "RETRY_SECONDS", 0.0)
    output, server = Output(tmp_path / "out.jsonl"), Failing(*statuses)
    requests = [BatchRequest("a", "/v1/completions", {})]
    asyncio.run(answer_all(cast(LocalServer, server), iter(requests), output, at_once=2, on_answer=lambda: None))
    output.close()
    (found,) = (json.loads(one) for one in (tmp_path / "out.jsonl").read_bytes().splitlines())
    assert (found["response"]["status_code"], server.asked) == (statuses[-1], len(statuses))


def test_an_engine_that_stays_down_answers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "RETRY_SECONDS", 0.0)
    output = Output(tmp_path / "out.jsonl")
    requests = (BatchRequest(str(number), "/v1/completions", {}) for number in range(9))
    with pytest.raises(RefusedError, match="the engine is gone"):
        asyncio.run(answer_all(cast(LocalServer, Failing(503)), requests, output, at_once=2, on_answer=lambda: None))
    output.close()
    assert not (tmp_path / "out.jsonl").read_bytes()


@pytest.mark.parametrize("content", [b"no JSON\n", b'{"custom_id": "a"}\n', line("a"), b"notes", line("a")[:-1]])
def test_no_other_file_is_written_into(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path / "out.jsonl", content)
    with pytest.raises(ConfigError, match=r"out.jsonl:1 is no line of a batch's output"):
        Output(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        ([line("a", body={"model": "m"}), line("b", body={"model": "n"})], [], "the requests name 2 models: m, n"),
        ([line("a", body={"model": "smollm"})], [], "models.yaml has no model 'smollm'"),
        ([line("a")], ["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_begun_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[bytes], options: list[str], said: str
) -> None:
    source = written(tmp_path / "in.jsonl", *lines)
    assert main(["batch", str(source), str(tmp_path / "out.jsonl"), *options]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_answers_do_not_go_among_the_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "in.jsonl", line("a"))
    assert main(["batch", str(source), str(source), "--model", TINY]) == 1
    assert "cannot go into the file of the requests" in capsys.readouterr().err
    assert source.read_bytes() == line("a")


def command(source: Path, target: Path) -> list[str]:
    return [sys.executable, "-m", "server.commands.cli", "batch", str(source), str(target), "--model", TINY]


HOLDING = """
import asyncio, sys
from server.commands.cli import main
from server.offline.local import LocalServer
ask, left = LocalServer.ask, int(sys.argv[1])
async def held(server, path, body):
    global left
    left -= 1
    if left < 0:
        await asyncio.Event().wait()
    return await ask(server, path, body)
LocalServer.ask = held
sys.exit(main(sys.argv[2:]))
"""
"""The command, which answers so many requests and no more: it does not end before whoever looks at it has acted."""


def holding(after: int, source: Path, target: Path) -> list[str]:
    return [sys.executable, "-c", HOLDING, str(after), *command(source, target)[3:]]


def test_a_file_is_answered_and_not_asked_again(tmp_path: Path) -> None:
    body = {"prompt": "ab", "max_tokens": 3, "temperature": 0}
    source = written(
        tmp_path / "in.jsonl",
        line("plain", body=body),
        line("wrong", body={**body, "temperature": 9}),
        line("long", body={**body, "prompt": "ab" * 100}),
        line(
            "chat", url="/v1/chat/completions", body={"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
        ),
    )
    target = tmp_path / "out.jsonl"
    settings = ["--threads", "1", "--memory", "64MiB", "--context", "64"]
    first = subprocess.run([*command(source, target), *settings], cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 1 and "has 4 answers, 2 of them with an error" in first.stderr
    found = {one["custom_id"]: one["response"] for one in map(json.loads, target.read_bytes().splitlines())}
    assert found["plain"]["body"]["choices"][0]["finish_reason"] == "length"
    assert found["chat"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert found["long"]["status_code"] == 400 and "64" in found["long"]["body"]["error"]["message"], "--context"
    assert found["wrong"]["status_code"] == 400 and found["wrong"]["body"]["error"]["param"] == "temperature"
    before = target.read_bytes()
    again = subprocess.run(command(source, target), cwd=ROOT, capture_output=True, text=True)
    assert (again.returncode, target.read_bytes()) == (1, before), "nothing was left to be asked"


@pytest.mark.slow
def test_a_batch_that_is_killed_again_and_again_is_complete_in_the_end(tmp_path: Path) -> None:
    """Five times at random, and each line is there once."""
    ids = [f"request-{number}" for number in range(600)]
    bodies = [{"prompt": "ab" * (number % 9 + 1), "max_tokens": 40 + number % 60} for number in range(600)]
    source = written(tmp_path / "in.jsonl", *(line(i, body=body) for i, body in zip(ids, bodies, strict=True)))
    target, chance, counts = tmp_path / "out.jsonl", random.Random(19), [0]
    for _ in range(5):
        more = chance.randrange(1, 90)
        running = subprocess.Popen(holding(more + 25, source, target), cwd=ROOT, stderr=subprocess.DEVNULL)
        wait_until(lambda wanted=counts[-1] + more: _lines(target) >= wanted)  # type: ignore[misc]
        assert running.poll() is None, "it was to be killed before its end"
        running.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
        running.wait(PATIENCE)
        counts.append(_lines(target))
    assert counts == sorted(set(counts)), "each run added something"
    done = subprocess.run(command(source, target), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = Counter(json.loads(one)["custom_id"] for one in target.read_bytes().splitlines())
    assert found == Counter(ids)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_who_ends_a_batch_leaves_nothing_behind(tmp_path: Path) -> None:
    lines = (line(str(number), body={"prompt": "a", "max_tokens": 200, "ignore_eos": True}) for number in range(400))
    source, target = written(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    environment = {**os.environ, "TMPDIR": str(tmp_path / "t")}
    (tmp_path / "t").mkdir()
    # What a shell starts in the background ignores SIGINT, and so does all that this starts.
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(
        holding(200, source, target), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heeding
    )
    wait_until(lambda: _lines(target))
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130 and "of 400 are answered; the same command goes on" in said, said
    assert not [*(tmp_path / "t").glob("headrace-*")]
    statuses = {json.loads(one)["response"]["status_code"] for one in target.read_bytes().splitlines()}
    assert statuses == {200}, "what was cut short is no answer"
