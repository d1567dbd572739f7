"""A server that plays parts: the playground's real files and description, answers by script.

The last message of a request chooses the script (`SCRIPTS`). What was asked is kept in `requests`; what stands still
goes on when `gate` is set.
"""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount

from server.app import ROUTES
from server.openapi.document import describe_api
from server.playground.assets import load_assets
from server.playground.pages import playground_router
from tests.server.fakes import wait_until

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    "[a](javascript:alert(1)) ![pixel](http://192.0.2.1/pixel.png) <a href='javascript:alert(1)'>b</a>"
    "[c](data:text/html,x) <style>body{display:none}</style> <iframe src='http://192.0.2.1/'></iframe>"
)
SHOWPIECE = (
    "## Fibonacci\n\nEach number is the *sum* of the **two before** it, see [here](https://example.org/fib).\n\n"
    "```python\ndef fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n```\n\n"
    "| n | value |\n|---|---:|\n| 5 | 5 |\n| 10 | 55 |\n\n1. one\n2. two\n   - nested\n\n- [x] done\n\n> quoted"
    "\n\nIt costs $5 or $10."
)
FORMULAS = (
    "The roots of $ax^2 + bx + c = 0$ with \\(a \\neq 0\\) cost $5 or $10, $5-$10 or US$7:\n\n"
    "$$\nx_{1,2} = \\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}\n$$\n\n"
    "\\[ \\sum_{k=1}^{n} k = \\frac{n(n+1)}{2}, \\quad "
    "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix} \\vec v = \\lambda \\vec v \\]\n\n"
    "- a limit $\\lim_{n \\to \\infty} (1 + \\tfrac1n)^n = e$\n\nNot understood: $\\nonsense{x$ and $$\\frac{1$$."
)
HOSTILE_FORMULAS = (
    "$\\href{javascript:document.title='owned'}{a}$ $\\url{http://192.0.2.1/}$ "
    "$\\includegraphics{http://192.0.2.1/pixel.png}$ $\\htmlStyle{position:fixed;inset:0}{b}$ "
    "$\\class{skip}{c}$ $\\htmlId{app}{d}$ $\\text{<img src=x onerror=\"document.title='owned'\">}$ "
    "$\\color{url(http://192.0.2.1/)}{e}$ $\\rule{9999em}{9999em}$ $\\kern{-9999em}f$ "
    "$\\mathllap{over the text before it}h$ $\\raisebox{-9999em}{i}$ $\\def\\a{\\a\\a}\\a$ "
    "$" + "{" * 900 + "g" + "}" * 900 + "$"
)
LONG_SUM = "$" + " + ".join(f"a_{{{index}}} x^{{{index}}}" for index in range(30)) + "$"
WIDE_FORMULAS = (
    f"Words {LONG_SUM} words.\n\n- an item {LONG_SUM}\n\n> said {LONG_SUM}\n\n# A heading {LONG_SUM}\n\n"
    f"**bold {LONG_SUM}**\n\n${LONG_SUM}$\n"
)
HALF_A_FORMULA = "$$\nf(x) = \\{ x \\mid x > 0 \\} \\\\\n= \\frac{1"
MODELS = ("scripted/large-model", "scripted/small")


@dataclass
class Scripted:
    """A running server."""

    port: int = 0
    requests: list[dict[str, Any]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    key: str = ""
    """Asked for if there is one."""
    pace: float = 0.001
    """Seconds between events."""
    scrapes: int = 0
    """How often /metrics was asked for."""
    left: int = 0
    """Streams whose client went away."""
    names: tuple[str, ...] = MODELS
    """Of the models."""
    refusal: str = "temperature must be at most 2.0, got 3"
    """What is said to who asks to be refused."""
    prefix: str = ""
    """Below which all of it stands, as behind a proxy; with a slash in front."""

    @property
    def url(self) -> str:
        """With a trailing slash."""
        return f"http://127.0.0.1:{self.port}{self.prefix}/"


def model(name: str) -> dict[str, Any]:
    """An entry of /v1/models."""
    capabilities = {
        "input": ["text", "image"] if name == MODELS[0] else ["text"],
        "output": ["text"],
        "streaming": True,
        "logprobs": True,
        "tools": True,
        "structured_outputs": ["json_object", "json_schema", "json", "regex", "choice", "grammar"],
        "reasoning": True,
    }
    defaults = {"temperature": 0.5, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "headrace",
        "state": "ready",
        "context_length": 4096,
        "max_model_len": 4096,
        "architecture": "LlamaForCausalLM",
        "capabilities": capabilities,
        "sampling_defaults": defaults,
        "generation_config": {},
        "kv_cache_tokens": 100_000,
        "dtype": "bfloat16",
        "device": "cpu",
    }


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any) -> bytes:
    """One event of a stream."""
    index = fields.pop("index", 0)
    logprobs = fields.pop("logprobs", None)
    choices = [{"index": index, "delta": delta or {}, "finish_reason": finish, "logprobs": logprobs}]
    body = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": MODELS[0], "choices": choices}
    return b"data: " + json.dumps(body | fields, ensure_ascii=False).encode() + b"\n\n"


def usage(tokens: int) -> bytes:
    """The last chunk but for the end."""
    details = {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}
    return chunk(choices=[], usage=details | {"prompt_tokens_details": {"cached_tokens": 16}})


DONE = b"data: [DONE]\n\n"


def texts(*pieces: str) -> list[bytes]:
    """A whole answer of these pieces."""
    return [chunk({"role": "assistant", "content": ""}), *(chunk({"content": piece}) for piece in pieces)]


def ended(events: list[bytes], finish: str = "stop") -> list[bytes]:
    """Events with an end behind them."""
    return [*events, chunk({}, finish), usage(len(events) - 1), DONE]


def token(text: str, logprob: float, *others: tuple[str, float]) -> dict[str, Any]:
    """An entry of logprobs.content."""
    tops = [(text, logprob), *others]
    entries = [{"token": one, "logprob": value, "bytes": list(one.encode())} for one, value in tops]
    return {**entries[0], "top_logprobs": sorted(entries, key=lambda entry: -entry["logprob"])}


def with_logprobs() -> list[bytes]:
    """An answer of five tokens, one of them a surprise."""
    tokens = [
        token("The", -0.1, (" A", -2.5)),
        token(" Danube", -3.2, (" Rhine", -0.9), (" Seine", -1.5)),
        token(" is", -0.01, (" was", -5.0)),
        token(" long", -1.2, (" wide", -1.3)),
        token(".", -0.02, ("!", -4.5)),
    ]
    return ended([chunk({"content": one["token"]}, logprobs={"content": [one]}) for one in tokens])


def hostile_tokens() -> list[bytes]:
    """Tokens, alternatives and a call that are pieces of a page."""
    tokens = [token(HOSTILE, -0.5, ("<img src=x onerror=\"document.title='owned'\">", -1.0)), token(" b", -0.1)]
    function = {"name": HOSTILE, "arguments": json.dumps({HOSTILE: HOSTILE})}
    call = {"index": 0, "id": HOSTILE, "type": "function", "function": function}
    pieces = [chunk({"content": one["token"]}, logprobs={"content": [one]}) for one in tokens]
    return ended([*pieces, chunk({"tool_calls": [call]})], "tool_calls")


def split_characters() -> list[bytes]:
    """An answer whose bytes are cut within characters, line ends and events."""
    whole = b"".join(ended(texts("Grüße, ", "日本語 ", "🌍🌎 fin"))).replace(b"\n\n", b"\r\n\r\n")
    return [whole[at : at + 3] for at in range(0, len(whole), 3)]


def calls() -> list[bytes]:
    """Two calls, their arguments in pieces."""
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    second = {"index": 1, "id": "call_2", "type": "function", "function": {"name": "<b>get_time</b>", "arguments": ""}}
    return ended(
        [
            chunk({"role": "assistant", "content": None, "tool_calls": [first]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Par'}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": 'is"}'}}]}),
            chunk({"tool_calls": [second]}),
            chunk({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}),
        ],
        "tool_calls",
    )


STALL = b"(stall)"
"""Not sent: waits for the gate."""
CUT = b"(cut)"
"""Not sent: the connection ends."""
ERROR = b'data: {"error": {"message": "The <b>engine</b> died", "type": "server_error", "code": "engine_died"}}\n\n'
SCRIPTS: dict[str, list[bytes]] = {
    "hello": ended(texts("Hello ", "**there**", ", friend.")),
    "stall": [*ended(texts("First"))[:2], STALL, *ended(texts(" second."))[1:]],
    "silence": [STALL, *ended(texts("At last."))],
    "split": split_characters(),
    "broken": [*texts("Half an ans"), ERROR, DONE],
    "cut": [*texts("Half"), CUT],
    "short": ended(texts("It goes"), "length"),
    "think": ended(
        [chunk({"reasoning": "Let me <i>think</i>.", "reasoning_content": "Let me <i>think</i>."}), *texts("So.")]
    ),
    "call": calls(),
    "hostile": ended([chunk({"reasoning": HOSTILE}), *texts(HOSTILE)]),
    "show": ended(texts(*(SHOWPIECE[at : at + 7] for at in range(0, len(SHOWPIECE), 7)))),
    "rivers": with_logprobs(),
    "formulas": ended(texts(*(FORMULAS[at : at + 9] for at in range(0, len(FORMULAS), 9)))),
    "wide": ended(texts(WIDE_FORMULAS)),
    "opened": ended(texts(f"So it is:\n\n{HALF_A_FORMULA}")),
    "everything": hostile_tokens(),
    "trap": ended(texts(HOSTILE_FORMULAS)),
}


def script_for(body: dict[str, Any]) -> list[bytes]:
    """What is answered to a request."""
    last = body["messages"][-1]
    if body.get("continue_final_message"):
        return ended(texts(" and on."))
    if last["role"] == "tool":
        return ended(texts("It is warm."))
    content = last["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    if body.get("n"):
        return ended([chunk({"content": f"Choice {index}"}, index=index) for index in range(body["n"])])
    return SCRIPTS.get(text.split(" ")[0], ended(texts(f"You said: {text}")))


def with_counts(events: list[bytes]) -> list[bytes]:
    """Events with the usage so far in each, a token for each piece, where they are whole."""
    counted, tokens = [], 0
    for event in events:
        if event.startswith(b'data: {"id"') and event.endswith(b"}\n\n"):
            body = json.loads(event.removeprefix(b"data: "))
            tokens += any(
                value for choice in body["choices"] for key, value in choice["delta"].items() if key != "role"
            )
            counts = {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}
            event = b"data: " + json.dumps({"usage": counts} | body, ensure_ascii=False).encode() + b"\n\n"
        counted.append(event)
    return counted


def build(server: Scripted) -> FastAPI:
    """The application."""
    app = FastAPI(openapi_url=None)
    app.include_router(playground_router(load_assets()))

    def refused(request: Request) -> JSONResponse | None:
        if not server.key or request.headers.get("authorization") == f"Bearer {server.key}":
            return None
        return JSONResponse({"error": {"message": "A valid API key is needed", "code": "invalid_api_key"}}, 401)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return refused(request) or JSONResponse({"object": "list", "data": [model(name) for name in server.names]})

    @app.get("/openapi.json")
    async def openapi(request: Request) -> Response:
        return refused(request) or JSONResponse(describe_api(ROUTES, version="1", needs_key=False))

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await request.json()
        texts = ["<|im_start|>", *(str(message["content"]) for message in body["messages"]), "<|im_end|>"]
        answer = {"count": len(texts), "max_model_len": 4096, "tokens": list(range(len(texts)))}
        if body.get("return_cached_tokens"):
            answer["cached_tokens"] = 2
        strings = {"token_strs": texts, "special_positions": [0, len(texts) - 1]}
        return JSONResponse(answer | (strings if body.get("return_token_strs") else {}))

    @app.get("/metrics")
    async def metrics() -> Response:
        server.scrapes += 1
        counted = 300 * server.scrapes
        lines = [f'headrace_{name}{{model="{MODELS[0]}"}} {value}' for name, value in (
            ("requests_running", 2), ("requests_waiting", 1), ("generation_tokens_total", counted),
            ("prompt_tokens_computed_total", 5000), ("prompt_tokens_cached_total", 2000),
        )]  # fmt: skip
        blocks = (("free", 50), ("cached", 10), ("owned", 40), ("total", 100))
        lines += [f'headrace_kv_blocks{{model="{MODELS[0]}",state="{state}"}} {value}' for state, value in blocks]
        return PlainTextResponse("\n".join(lines) + "\n")

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        if body.get("max_tokens") == 1 and not body.get("stream"):
            return _checked(body)
        server.requests.append(body)
        if body["messages"][-1].get("content") == "refuse":
            error = {
                "message": server.refusal,
                "param": "temperature",
                "code": "invalid_value",
            }
            return JSONResponse({"error": error}, 400, headers={"x-request-id": "req-refused"})
        headers = {"x-request-id": "req-scripted"}
        events = script_for(body)
        if body.get("stream_options", {}).get("continuous_usage_stats"):
            events = with_counts(events)
        return StreamingResponse(_play(server, events), media_type="text/event-stream", headers=headers)

    return app


def _checked(body: dict[str, Any]) -> Response:
    """What the page's editors ask: whether a format is taken."""
    if "not-supported" in json.dumps(body):
        message = (
            "response_format.json_schema.schema at /properties/a/format: 'format' 'not-supported' is not supported"
        )
        return JSONResponse({"error": {"message": message, "param": "response_format.json_schema.schema"}}, 400)
    return JSONResponse({"choices": []})


async def _play(server: Scripted, events: list[bytes]) -> AsyncIterator[bytes]:
    try:
        for event in events:
            if event == CUT:
                return
            while event == STALL and not server.gate.is_set():
                await asyncio.sleep(0.01)
            if event != STALL:
                yield event
                await asyncio.sleep(server.pace)
    except (asyncio.CancelledError, GeneratorExit):
        server.left += 1
        raise


@contextmanager
def running_scripted(**settings: Any) -> Iterator[Scripted]:
    """Run one in a thread; `settings` are fields of `Scripted`."""
    state = Scripted(**settings)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        state.port = listener.getsockname()[1]
        app = build(state)
        config = uvicorn.Config(
            Mount(state.prefix, app) if state.prefix else app,
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield state
        finally:
            state.gate.set()
            server.should_exit = True
            thread.join()
