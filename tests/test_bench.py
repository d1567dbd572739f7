"""The load generator reads any server's stream rightly; its numbers are worth nothing otherwise."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import gpu
from bench.chat_stream import Endpoint, Reply
from bench.prompts import make_prompt
from bench.record import percentile, table
from bench.serve import gaps_between, summarise

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


def ask(answer: bytes, piece: int = 1 << 20, timeout: float = 10.0, close: bool = True) -> Reply:
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


def test_tables_are_markdown() -> None:
    assert table(["a", "long"], [["1", "2"]]).splitlines() == ["|  a | long |", "| -: | ---: |", "|  1 |    2 |"]


def test_the_measurement_of_gpus_keeps_its_books(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the CPU and with a tiny model, so that only its figures mean nothing."""
    tiny = "llama?hidden_size=64&intermediate_size=64&num_hidden_layers=2&vocab_size=300&num_attention_heads=4"
    options = ["--device", "cpu", "--batches", "1", "3", "--prompts", "64", "--context", "32", "--requests", "4"]
    options += ["--offline-tokens", "8", "--json", str(tmp_path / "gpu.json"), "--models", tiny, "no-such-model"]
    assert gpu.main(options) == 1
    report = json.loads((tmp_path / "gpu.json").read_text())
    found = report["models"][tiny]
    assert set(found["decode"]) == {"1", "3"} and set(found["prefill"]) == {"64"} and report["device"] == "cpu"
    assert all(0 < one["share_of_ceiling"] < 1 for one in [*found["decode"].values(), *found["prefill"].values()])
    assert found["offline"]["tokens_per_second"] > 0 and "error" in report["models"]["no-such-model"]
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("|")
