"""The load generator reads any server's stream rightly; its numbers are worth nothing otherwise."""

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bench.chat_stream import Endpoint, Reply
from bench.gpu import __main__ as suite
from bench.gpu.idle import LISTED, idle_shares, longest_of
from bench.gpu.job import Job, Options, run_job
from bench.gpu.limits import Costs
from bench.gpu.report import rows_of
from bench.gpu.timing import Ceilings
from bench.image_times import sums
from bench.pictures import make_picture, size_of
from bench.prompts import make_prompt
from bench.record import circumstances, percentile, table
from bench.serve import gaps_between, summarise
from tests.clocks import PATIENCE

EVENTS = [
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n',
    b": keep-alive\n\n",
    b'data: {"choices":[{"index":0,"delta":{"content":"\xc3\xa9"}}],"usage":null}\r\n\r\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"length"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"more":{}}}\n\n',
    b"data: [DONE]\n\n",
]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(events: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"


def ask(answer: bytes, piece: int = 1 << 20, timeout: float = PATIENCE, close: bool = True) -> Reply:
    """What the client makes of a server that sends `answer` in pieces."""

    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(b'{"stream":true}'))
            for start in range(0, len(answer), piece):
                writer.write(answer[start : start + piece])
                await writer.drain()
                await asyncio.sleep(0)  # lets the client read this piece alone
            if not close:
                await reader.read()  # until the client closes
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        served.set()

    async def run() -> Reply:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            reply = await Endpoint(f"127.0.0.1:{port}").chat({"stream": True}, timeout=timeout)
            await served.wait()
        return reply

    return asyncio.run(run())


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("frame", [chunked, lambda events: chunked([b"".join(events)])])
def test_a_stream_is_read_however_it_is_cut(piece: int, frame: Callable[[list[bytes]], bytes]) -> None:
    reply = ask(HEAD + frame(EVENTS), piece)
    assert reply.error is None
    assert reply.texts == ["é", "b"] and len(reply.times) == 2
    assert reply.output_tokens == 5 and reply.finish_reason == "length"


def test_without_usage_chunks_are_counted() -> None:
    reply = ask(HEAD + chunked(EVENTS[:4] + EVENTS[5:]))
    assert reply.output_tokens == 2
    assert summarise([reply], 2.0)["tokens_counted_by"] == "chunks"
    assert summarise([reply], 2.0)["output_tokens_per_s"] == 1.0


def test_a_server_that_keeps_the_connection_does_not_hold_the_client() -> None:
    assert ask(HEAD + chunked(EVENTS[:5]), close=False).error is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b'HTTP/1.1 429 Busy\r\nContent-Length: 4\r\n\r\n{"a"', 'status 429: {"a"'),
        (HEAD + chunked(EVENTS[:3])[:-5], "the stream ended early"),
        (HEAD + chunked([EVENTS[2], b'data: {"error":{"message":"broken"}}\n\n', EVENTS[5]]), "error event: "),
        (HEAD + chunked([b"data: {oops\n\n"]), "a chunk that cannot be read: "),
        (b"", "status 0: "),
    ],
)
def test_failures_are_errors_not_short_answers(answer: bytes, expected: str) -> None:
    reply = ask(answer)
    assert (reply.error or "").startswith(expected)
    assert summarise([reply], 1.0)["errors"] == 1
    assert summarise([reply], 1.0)["output_tokens"] == 0


def test_a_silent_server_and_no_server_are_errors() -> None:
    assert ask(HEAD, timeout=0.2, close=False).error == "no end after 0.2 s"
    refused = asyncio.run(Endpoint("http://127.0.0.1:9").chat({}))
    assert (refused.error or "").startswith("connection: ")


def test_percentiles_are_nearest_rank() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, p) for p in (50, 95, 99, 100)] == [50.0, 95.0, 99.0, 100.0]
    assert percentile([3.0], 99) == 3.0 and percentile([], 99) == 0.0


def test_gaps_belong_to_the_time_they_end_in() -> None:
    assert gaps_between([Reply(0.0, times=[1.0, 2.0, 5.0]), Reply(0.0, times=[4.0])], 2.0, 5.0) == [3.0]


def test_prompts_repeat_and_share_what_they_are_told_to() -> None:
    first, again = (make_prompt(3, tokens=100, shared_prefix=20) for _ in range(2))
    other = make_prompt(4, tokens=100, shared_prefix=20)
    assert first == again and first != other
    assert first.split()[:20] == other.split()[:20] and first.split()[20:60] != other.split()[20:60]


def test_images_have_the_size_that_is_asked_for_and_differ() -> None:
    first, again, other = (make_picture(number, (50, 20)) for number in (1, 1, 2))
    assert first == again != other
    content = base64.b64decode(first.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == size_of("50x20") == (50, 20)
    for wrong in ("50", "x", "50x0", "-1x5"):
        with pytest.raises(ValueError):
            size_of(wrong)


def test_what_a_server_spends_on_images_is_read_from_its_metrics() -> None:
    page = (
        'headrace_image_fetch_seconds_bucket{le="0.01"} 3\nheadrace_image_fetch_seconds_sum 0.5\n'
        'headrace_image_decode_seconds_sum 1.5\nheadrace_image_encode_seconds_total{model="a{b}"} 2\n'
        'headrace_image_encode_seconds_total{model="c"} 0.25\n'
    )
    assert sums(page) == {"fetch": 0.5, "decode": 1.5, "encode": 2.25}
    assert sums("") == sums(page.replace("decode", "other")) == {}


def test_tables_are_markdown() -> None:
    assert table(["a", "long"], [["1", "2"]]).splitlines() == ["|  a | long |", "| -: | ---: |", "|  1 |    2 |"]


TINY = "llama?hidden_size=64&intermediate_size=64&num_hidden_layers=2&vocab_size=300&num_attention_heads=4"
SIZES = ["--device", "cpu", "--batches", "1", "3", "--prompts", "64", "--context", "32", "--answer", "8"]
SIZES += ["--burst", "4", "16", "8"]


def here(job: Job, seconds: float, logs: Path | None) -> suite.Found:
    """A job of the GPU suite in this process, which is faster than one of its own."""
    found: suite.Found = {}
    run_job(job, found.__setitem__)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_measurement_of_gpus_keeps_its_books(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part, on the CPU and with a tiny model, so that only its figures mean nothing."""
    monkeypatch.setattr(suite, "run", here)
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    report_file = tmp_path / "gpu.json"
    assert suite.main([*SIZES, "--models", TINY, f"{TINY}@fp8", "--peers", TINY, "--json", str(report_file)]) == 0
    report = json.loads(report_file.read_text())
    found = report["found"]
    engine, peer = found[TINY], found[f"{TINY} peer"]
    assert set(found[f"{TINY}@fp8"]) == set(engine) - {"burst"}
    assert found[f"{TINY}@fp8"]["load"]["step_bytes"] < engine["load"]["step_bytes"]
    assert set(engine) == {
        "load",
        "decode 1",
        "decode 3",
        "prompt 64",
        "idle 1",
        "idle 3",
        "idle prompt 64",
        "burst",
        "offline",
    }
    assert {"ceilings", "attention 32 heads on 8 of 128, batch 1"} <= set(found["device"]) and report["device"] == "cpu"
    for name in ("decode 1", "decode 3", "prompt 64", "offline"):
        assert engine[name]["share_of_ceiling"] > 0, name
    for name in ("idle 1", "idle 3", "idle prompt 64"):
        assert 0 <= engine[name]["waiting"] <= engine[name]["idle"] < 1 and engine[name]["operations"] > 100
    assert peer["burst"]["tokens_per_second"] > 0 and peer["burst"]["requests"] == engine["burst"]["requests"] == 4
    assert found[f"{TINY} server"]["start"]["first_answer_seconds"] > 0
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-1].startswith("|") and len(lines) > sum(len(parts) for parts in found.values())


@pytest.mark.slow
@pytest.mark.timeout(300)  # three processes with torch
def test_a_job_that_fails_or_hangs_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(device="cpu")
    bad = Job("engine", "no-such-model", ("decode",), options)
    assert "there is no such architecture" in suite.run(bad, PATIENCE)["error"]["error"]
    assert suite.run(bad, 0.1) == {"error": {"error": "not done after 0 s"}}
    dead = Job("engine", "llama", ("decode",), Options(device="no-such-device"))
    assert suite.run(dead, PATIENCE)["error"]["error"].startswith("RuntimeError")
    assert "there is no such architecture" in suite.run(bad, PATIENCE, tmp_path / "logs")["error"]["error"]
    assert "there is no such architecture" in (tmp_path / "logs" / "no-such-model.log").read_text()
    found = suite.measure([bad, dead], 1.0)
    assert [parts["error"]["error"][:8] for parts in found.values()] == ["left out", "left out"]
    assert rows_of(found)[0] == ["no-such-model", "error", "left out: the 1 s of the suite are over", ""]


def test_figures_are_written_when_they_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut short, as a borrowed machine may cut it, leaves those of the jobs before."""
    report = tmp_path / "gpu.json"

    def cut(job: Job, seconds: float, logs: Path | None) -> suite.Found:
        if job.kind == "engine":
            assert set(json.loads(report.read_text())["found"]) == {"device"}
            raise KeyboardInterrupt
        return {"ceilings": {"bytes_per_second": 1.0, "flops": 1.0, "fp8_flops": None}}

    monkeypatch.setattr(suite, "run", cut)
    with pytest.raises(KeyboardInterrupt):
        suite.main(["--device", "cpu", "--models", "a", "--parts", "ceilings", "decode", "--json", str(report)])
    assert json.loads(report.read_text())["found"]["device"]["ceilings"]["flops"] == 1.0


def test_the_operations_that_take_most_are_told() -> None:
    named = [("a", (0.0, 4.0)), ("b", (4.0, 5.0)), ("a", (5.0, 9.0)), ("b", (9.0, 10.0)), ("c", (10.0, 30.0))]
    assert longest_of(named, 2) == {"c x0.5": 10.0, "a x1": 4.0, "b x1": 1.0}
    assert len(longest_of([(str(at), (0.0, 1.0)) for at in range(99)], 1)) == LISTED


def test_a_result_names_no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["x", "/home/somebody/model.gguf", "--json", "bench/results/a.json"])
    assert circumstances()["command"].endswith(" model.gguf --json bench/results/a.json")


def test_jobs_survive_their_command_line() -> None:
    job = Job("engine", "a", ("decode",), Options(batches=(1, 2)), Ceilings(1.0, 2.0, 3.0))
    assert Job.decode(job.encode()) == job
    jobs = suite.plan(suite.parse([]), Options())
    assert [job.kind for job in jobs[:4]] == ["device", "engine", "server", "peer"]
    assert {job.model for job in jobs} - {""} == set(suite.MODELS)
    few = suite.parse(["--parts", "decode", "--models", "a"])
    assert [job.kind for job in suite.plan(few, Options())] == ["engine"]


def test_waiting_is_told_from_gaps_within_a_recorded_step() -> None:
    found = idle_shares([(10.0, 20.0), (0.0, 8.0), (5.0, 9.0), (60.0, 100.0), (21.0, 30.0)])
    assert found.operations == 5 and found.longest_gap_us == 30.0
    assert found.idle == pytest.approx(0.32) and found.waiting == pytest.approx(0.30)
    with pytest.raises(ValueError):
        idle_shares([])


def test_limits_are_those_of_the_arithmetic_done_by_hand() -> None:
    """An 8B model on a device of 4.3 TB/s and 790 TFLOP/s: its roofline as published beside the design."""
    costs = Costs(15.01e9, 2 * 6.98e9, 2 * 0.525e9, 4 * 32 * 128 * 32, 131072.0)
    ceilings = Ceilings(4.3e12, 790e12, 1450e12)
    assert 1 / costs.decode_seconds(ceilings, 1, 0) == pytest.approx(287, rel=0.01)
    assert 2048 / Costs(1, costs.hidden_flops, 0, 0, 1).prompt_seconds(ceilings, 2048) == pytest.approx(56600, rel=0.01)
    assert costs.best_offline_rate(ceilings, 900_000) == pytest.approx(11_900, rel=0.02)
    fast = replace(costs, is_fp8=True)
    assert fast.prompt_seconds(ceilings, 2048) < costs.prompt_seconds(ceilings, 2048)
