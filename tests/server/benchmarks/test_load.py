"""The load generator reads any server's stream rightly and keeps its books; its numbers are worth nothing otherwise."""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from engine.errors import ConfigError
from server.benchmarks import serve
from server.benchmarks.amounts import count, json_object, not_negative, positive, size_of, whole
from server.benchmarks.attack import gaps_between
from server.benchmarks.chat_stream import Endpoint, EndpointError, Reply
from server.benchmarks.figures import Goal, combined, scatter, summarise
from server.benchmarks.image_times import sums
from server.benchmarks.load import closed_loop, open_loop
from server.benchmarks.pictures import make_picture
from server.benchmarks.prompts import make_prompt
from server.benchmarks.record import percentile
from server.benchmarks.workload import (
    SHIPPED,
    Lengths,
    Workload,
    add_workload,
    lengths,
    read_conversations,
    workload_of,
)
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


def test_what_a_server_spends_on_images_is_read_from_its_metrics() -> None:
    page = (
        'headrace_image_fetch_seconds_bucket{le="0.01"} 3\nheadrace_image_fetch_seconds_sum 0.5\n'
        'headrace_image_decode_seconds_sum 1.5\nheadrace_image_encode_seconds_total{model="a{b}"} 2\n'
        'headrace_image_encode_seconds_total{model="c"} 0.25\n'
    )
    assert sums(page) == {"fetch": 0.5, "decode": 1.5, "encode": 2.25}
    assert sums("") == sums(page.replace("decode", "other")) == {}


def reply(start: float, *times: float, error: str | None = None) -> Reply:
    return Reply(start, times=list(times), texts=["x"] * len(times), finished=max((start, *times)), error=error)


def test_goodput_counts_what_kept_all_limits() -> None:
    fine, slow_first, slow_later, failed = (
        reply(0, 0.1, 0.2, 0.3),
        reply(0, 0.6),
        reply(0, 0.1, 0.5),
        reply(0, error="x"),
    )
    replies = [fine, slow_first, slow_later, failed]
    figures = summarise(replies, 2.0, Goal(ttft_ms=500, itl_ms=150))
    assert figures["goodput_per_s"] == 0.5 and figures["kept_share"] == 0.25 and figures["requests_per_s"] == 1.5
    assert summarise(replies, 2.0, Goal(ttft_ms=500))["kept_share"] == 0.5
    assert "kept_share" not in summarise(replies, 2.0, Goal())


def test_repeats_come_to_medians_and_counts_add_up() -> None:
    runs = [summarise([reply(0, 1.0, 1.0 + gap)], 2.0) for gap in (0.1, 0.5, 0.2)]
    level = combined(runs)
    assert level["itl_ms"]["p50"] == pytest.approx(200) and level["requests"] == 3 and level["output_tokens"] == 6
    assert len(level["repeats"]) == 3 and scatter(level) == "0 %" and scatter(runs[0]) == ""
    assert combined(runs[:1]) is runs[0]


def test_clients_wait_for_their_answers_and_arrivals_do_not() -> None:
    async def run(open_: bool) -> tuple[int, int]:
        at_once = most = sent = 0
        all_sent = asyncio.Event()

        async def send() -> Reply:
            nonlocal at_once, most, sent
            sent += 1
            at_once += 1
            most = max(most, at_once)
            if sent == 20:
                all_sent.set()
            await (all_sent.wait() if open_ else asyncio.sleep(0))
            at_once -= 1
            return reply(0, 1)

        async with asyncio.timeout(PATIENCE):
            arrived = await (open_loop(send, 1e6, requests=20, seed=1) if open_ else closed_loop(send, 3, requests=20))
        assert len(arrived.replies) == sent
        return sent, most

    assert asyncio.run(run(open_=False)) == (20, 3)
    assert asyncio.run(run(open_=True)) == (20, 20)


def test_lengths_are_fixed_or_even_between_two() -> None:
    assert lengths("64") == Lengths(64, 64) and str(lengths("8:16")) == "8:16"
    drawn = {Lengths(8, 16).of(number, "x") for number in range(300)}
    assert drawn == set(range(8, 17))
    for wrong in ("", "0", "9:8", "a", "1:b", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be a number of tokens"):
            lengths(wrong)


def test_an_equal_number_is_an_equal_request() -> None:
    one, again, other = (
        Workload(prompt=Lengths(40, 80), answer=Lengths(4, 99), seed=seed).asked(7) for seed in (0, 0, 1)
    )
    assert one == again and one != other


def test_conversations_of_every_form_are_read(tmp_path: Path) -> None:
    question = {"role": "user", "content": "Why?"}
    forms = [
        {"messages": [question], "max_tokens": 9},
        {"custom_id": "a", "body": {"messages": [question, {"role": "assistant", "content": "one two three"}]}},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "because " * 6}]},
        {"messages": [question]},
    ]
    expected = [([question], limit) for limit in (9, 4, 8, None)]
    lines, array = tmp_path / "a.jsonl", tmp_path / "b.json"
    lines.write_text("\n".join(map(json.dumps, forms)))
    array.write_text(json.dumps(forms))
    assert read_conversations(str(lines)) == read_conversations(str(array)) == expected
    array.write_text('[{"text": "x"}]')
    for path in (array, tmp_path / "absent"):
        with pytest.raises(ConfigError, match=path.name):
            read_conversations(str(path))


def test_a_files_answers_may_be_cut_but_its_prompts_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 300}')

    def asked(*words: str) -> int:
        parser = argparse.ArgumentParser()
        add_workload(parser)
        return workload_of(parser.parse_args(["--conversations", str(path), *words])).asked(0).max_tokens

    assert (asked(), asked("--max-tokens", "8"), asked("--max-tokens", "128"), asked("--max-tokens", "999")) == (
        300, 8, 128, 300,
    )  # fmt: skip
    for words in (("--prompt-tokens", "64"), ("--shared-prefix", "5")):
        with pytest.raises(ConfigError, match="lengths of their own"):
            asked(*words)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [(count, "0"), (count, "-1"), (count, "x"), (positive, "0"), (positive, "-5"), (positive, "nan"),
     (not_negative, "-5"), (not_negative, "inf"), (not_negative, "x"), (whole, "-1"), (whole, "1.5"),
     (json_object, "[1]"), (json_object, "{bad"), (size_of, "10"), (size_of, "0x5"), (size_of, "ax5")],
)  # fmt: skip
def test_what_an_option_cannot_be_is_said_with_what_was_given(kind: Callable[[str], object], wrong: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"must be .*{re.escape(wrong)}"):
        kind(wrong)


@pytest.mark.parametrize("option", ["--warmup", "--images", "--attack-pause", "--shared-prefix"])
def test_no_option_of_a_load_is_negative(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    assert not getattr(parser.parse_args([option, "0"]), option.removeprefix("--").replace("-", "_"))
    with pytest.raises(SystemExit):
        parser.parse_args([option, "-1"])
    said = capsys.readouterr().err
    assert f"{option}: must be a" in said and "0 or more, got '-1'" in said


def test_where_nothing_was_answered_there_is_no_latency() -> None:
    silent = summarise([Reply(0.0, error="no such model")], 1.0, Goal(None, None)) | {"concurrency": 1}
    outcome = serve.outcome_of("x", [silent])
    assert outcome.has_failed and outcome.tables[0].rows[0][-7:] == ["-"] * 6 + ["1"]
    assert not any(line.points for chart in outcome.charts[:2] for line in chart.lines)  # type: ignore[union-attr]


def test_the_conversations_that_come_along_are_questions() -> None:
    found = read_conversations(SHIPPED)
    assert len(found) >= 40 and all(messages[-1]["role"] == "user" and limit for messages, limit in found)


def test_a_server_that_cannot_be_asked_is_told_without_a_traceback() -> None:
    with pytest.raises(EndpointError, match="/v1/models"):
        Endpoint("http://127.0.0.1:9").first_model()
    with pytest.raises(ConfigError, match="ftp"):
        Endpoint("ftp://somewhere")
