"""What a client does not read does not pile up: kernel buffers fill, then a bounded queue, then the request ends."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from engine import request_stream
from engine.errors import RequestError
from engine.messages import SequenceOutput
from engine.request_stream import RequestStream
from tests.clocks import PATIENCE
from tests.server.fakes import RunningServer, Script, running_server, wait_until


def test_a_stream_that_nobody_reads_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_stream, "MAX_UNREAD_OUTPUTS", 10)
    aborted: list[object] = []

    async def scenario() -> None:
        stream = RequestStream(1, 2, lambda _, index: aborted.append(index))
        for _ in range(10):
            stream.deliver(SequenceOutput(1, token_ids=[5]))
        assert not aborted
        stream.deliver(SequenceOutput(1, index=1, token_ids=[5], finish_reason="stop"))
        stream.deliver(SequenceOutput(1, token_ids=[5]))
        assert aborted == [None] and len(stream._pending) == 0
        with pytest.raises(RequestError, match="too slowly"):
            async for _ in stream:
                pass

    asyncio.run(scenario())


def take_little(server: RunningServer) -> None:
    """Let connections made from now on wait for their readers after a few chunks, not after megabytes."""
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)


def connect(server: RunningServer, path: str, **fields: Any) -> socket.socket:
    """Send a request and read nothing."""
    body = json.dumps({"stream": True, "max_tokens": 10**6, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


def test_readers_that_never_read_are_ended_before_their_memory_grows(
    smollm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the deadline for unread bytes far away, it is the bound on what waits that ends them."""
    monkeypatch.setattr(request_stream, "MAX_UNREAD_OUTPUTS", 1000)
    script = Script(model_dir=str(smollm2_dir), token_ids=[504], context=10**7)
    messages = [{"role": "user", "content": "x"}]
    with running_server(monkeypatch, tmp_path, script) as server:
        take_little(server)
        chat = connect(server, "/v1/chat/completions", messages=messages, logprobs=True, top_logprobs=20)
        raw = connect(server, "/v1/completions", prompt=["a", "b"], logprobs=20)
        with chat, raw:
            wait_until(lambda: len(server.events("add")) == 3)
            wait_until(lambda: len({id for event in server.events("abort") for id in event["ids"]}) == 3)
            client = server.handle.client
            assert client is not None and client.num_requests == 0
            chat.settimeout(PATIENCE)
            data = b""
            while not data.endswith(b"data: [DONE]\n\n\r\n") and b"[DONE]" not in data[-100:]:
                data += chat.recv(1 << 20)
        assert b'"slow_reader"' in data[-2000:]
