"""A server that writes down what programs send it, and answers as a model would."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CALL = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TEXT = "Hi there"


@dataclass
class Recording:
    """What was asked, in its order."""

    url: str
    """The base that programs are given, with /v1."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    """Values of the header with the key."""


def _whole(body: dict[str, Any]) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": TEXT}
    if "tools" in body:
        message["tool_calls"] = [CALL]
    choices = [{"index": index, "message": message, "finish_reason": "stop"} for index in range(body.get("n", 1))]
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "system_fingerprint": "f",
            "choices": choices,
            "usage": usage,
        }
    ).encode()


def _streamed(body: dict[str, Any]) -> bytes:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"content": TEXT[:3]}, {"content": TEXT[3:]}]
    if "tools" in body:
        pieces = ({"name": "f", "arguments": '{"a"'}, {"arguments": ": 1}"})
        deltas += [{"tool_calls": [{**CALL, "function": piece}]} for piece in pieces]
    whole = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "system_fingerprint": "f"}
    events = [
        {**whole, "choices": [{"index": index, "delta": delta, "finish_reason": None}]}
        for delta in deltas
        for index in range(body.get("n", 1))
    ]
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    events.append({**whole, "choices": [], "usage": usage})
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode() + b"data: [DONE]\n\n"


@contextmanager
def recording() -> Iterator[Recording]:
    """Run one in a thread."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.bodies.append(body)
            state.paths.append(self.path)
            state.keys.append(self.headers.get("authorization", ""))
            streams = bool(body.get("stream"))
            answer = (_streamed if streams else _whole)(body)
            self.send_response(200)
            self.send_header("content-type", "text/event-stream" if streams else "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Recording(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
