"""The outermost layer of the application: what holds for every route alike.

Request ids, the refusal of requests that two parties could read differently, host names, API keys and what each may do,
error answers and one log line a request. Pure ASGI, because Starlette's `BaseHTTPMiddleware` hides disconnects from
what it wraps.
"""

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.config.keys_file import Right
from server.edge.auth import Caller, Keys
from server.edge.cors import Cors
from server.edge.http_protocol import EXTRA
from server.edge.limits import RETRY_SECONDS, ClientGone
from server.protocol.errors import DRAINING, ApiError, internal_error, overloaded
from server.telemetry.counters import ServerCounters
from server.telemetry.logs import with_fields
from server.telemetry.record import Reporter, RequestRecord

logger = logging.getLogger(__name__)

MAX_HEADERS = 100
OPEN_PATHS = frozenset({"/health", "/livez", "/readyz"})
"""Reachable without a key."""
ADMIN_PREFIX = "/admin/"
METRICS_PATH, DESCRIPTION_PATH = "/metrics", "/openapi.json"
PROBED_PATHS = OPEN_PATHS | {METRICS_PATH}
"""Asked for every few seconds by other machines, so not worth a line each."""
_LIMITED = 429
"""What only the limits of a key are answered with."""
_GIVES_BACK = frozenset({_LIMITED, 503})
"""With these a request was refused that is to come again, so it is not counted."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Edge:
    """Wraps the application. `hosts` are the only acceptable Host names, None for any.

    `pages` are further paths that are reachable without a key, of which the log has no lines.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        counters: ServerCounters,
        hosts: Iterable[str] | None = None,
        pages: Iterable[str] = (),
        cors: Cors | None = None,
        report: Reporter | None = None,
    ) -> None:
        """`report` is told of every request that the log has a line of."""
        self._app = app
        self._keys = keys
        self._cors = cors or Cors()
        self._counters = counters
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._pages = frozenset(pages)
        self._report = report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; whatever it raises becomes an answer, or the end of the connection."""
        assert scope["type"] == "http", "websockets and lifespan are switched off"
        exchange = _Exchange(scope, receive, send, self._cors)
        try:
            if self._check(exchange):
                await exchange.answer_preflight(self._cors)
                return
            # The answer to HEAD is that to GET without its body, which is left out below.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._app({**scope, "method": method}, exchange.receive, exchange.send)
        except ClientGone:
            self._counters.disconnected += 1
        except ApiError as error:
            await exchange.answer(error)
        except asyncio.CancelledError:
            await exchange.answer(overloaded("The server is shutting down", retry_after=RETRY_SECONDS, reason=DRAINING))
        except Exception:
            logger.exception("request %s failed unexpectedly", exchange.request_id)
            await exchange.answer(internal_error())
        finally:
            if exchange.status:
                self._counters.responses[exchange.status // 100] += 1
            self._tell(exchange)
            self._count_for_key(exchange.record)

    def _tell(self, exchange: "_Exchange") -> None:
        """One line, and whoever else wants to know: never the prompt, never a byte that could forge another line."""
        record, path = exchange.record, exchange.scope["path"]
        quiet = path in PROBED_PATHS or self._is_page(record.method, path)
        record.end(exchange.status)
        level = logging.DEBUG if quiet else logging.INFO
        if logger.isEnabledFor(level):
            logger.log(level, "%s", record.line(), extra=with_fields(**record.fields()))
        if self._report is not None and not quiet:
            self._report(record)

    def _is_page(self, method: str, path: str) -> bool:
        """Whether somebody only looks at a page: what is posted to the same path is a request like any other."""
        return method in ("GET", "HEAD") and path in self._pages

    def _count_for_key(self, record: RequestRecord) -> None:
        if record.key is None or record.method != "POST":
            return
        counts = self._counters.of_key(record.key, self._keys.names)
        counts.requests += 1
        counts.limited += record.status == _LIMITED
        counts.prompt_tokens += record.prompt_tokens or 0
        counts.completion_tokens += record.completion_tokens or 0

    def _check(self, exchange: "_Exchange") -> bool:
        """Let a request pass or raise `ApiError`; whether it is none, but a browser's question before one."""
        headers, method, path = exchange.headers, exchange.scope["method"], exchange.scope["path"]
        if len(headers.raw) > MAX_HEADERS:
            raise ApiError(431, f"More than {MAX_HEADERS} headers", code="too_many_headers")
        if exchange.is_extra and path not in PROBED_PATHS:
            raise overloaded(
                "All connections of this server have requests", retry_after=RETRY_SECONDS, reason="max_connections"
            )
        if self._hosts is not None and _host_name(headers.get("host", "")) not in self._hosts:
            raise ApiError(
                403,
                "This server does not answer under that Host name; its operator can allow it with --allowed-host",
                type="permission_error",
                code="host_not_allowed",
            )
        state = exchange.scope.setdefault("state", {})
        state["request_id"] = exchange.request_id
        state["record"] = exchange.record
        if self._cors.is_preflight(method, headers):
            return True
        if path in OPEN_PATHS or self._is_page(method, path):
            return False
        state["caller"] = exchange.caller = caller = self._caller(exchange)
        exchange.record.key = caller.name or None
        if path.startswith(ADMIN_PREFIX):
            self._check_admin(exchange, caller)
        elif path != DESCRIPTION_PATH:
            _check_right(caller, "metrics" if path == METRICS_PATH else "use")
            if method == "POST":
                exchange.meter(caller)
        return False

    def _caller(self, exchange: "_Exchange") -> Caller:
        authorization, client = exchange.headers.get("authorization"), exchange.scope.get("client")
        given = authorization.encode("latin-1") if authorization is not None else None
        caller = self._keys.caller(given, client[0] if client else None)
        if caller is None:
            raise ApiError(
                401,
                "A valid API key is needed: Authorization: Bearer KEY",
                type="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return caller

    def _check_admin(self, exchange: "_Exchange", caller: Caller) -> None:
        """Only operators get to the admin's routes, and no page of another site in an operator's browser."""
        if not caller.may("admin"):
            raise _not_permitted(f"Loading and unloading models needs {self._what_admin_needs(exchange)}")
        origin = exchange.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != exchange.headers.get("host", ""):
            raise _not_permitted("Pages of other sites may not load and unload models")

    def _what_admin_needs(self, exchange: "_Exchange") -> str:
        if self._keys.needed:
            return "a key of --admin-api-key, or one with the right admin"
        if exchange.scope.get("client") is None:
            # Whoever is behind a proxy comes by this socket too, so it does not tell who is on this machine.
            return "a key over a socket of the file system; start the server with --admin-api-key or --keys"
        return "to come from the server's own machine, or a key"


def _check_right(caller: Caller, right: Right) -> None:
    if not caller.may(right):
        raise _not_permitted(f"This key has not the right {right!r}, which is needed here")


def _not_permitted(message: str) -> ApiError:
    return ApiError(403, message, type="permission_error", code="not_permitted")


class _Exchange:
    """One request and what has been sent in answer to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, cors: Cors) -> None:
        self.caller: Caller | None = None
        """Who asks, once that is known."""
        self._is_metered = self._is_counted = False
        self._cors = cors
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.is_extra = EXTRA in scope.get("state", {})
        """It came on a connection beyond the limit."""
        given = self.headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        self.status = 0
        self._receive = receive
        self._send = send
        self.record = RequestRecord(
            self.request_id,
            scope["method"][:20],
            scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:200],
            traceparent=self.headers.get("traceparent"),
            tracestate=self.headers.get("tracestate"),
        )
        self._body_read = self.headers.get("content-length", "0") == "0" and "transfer-encoding" not in self.headers

    def meter(self, caller: Caller) -> None:
        """Count this request among its key's. Raises `ApiError` 429."""
        self._is_metered = True
        caller.account.take_request()
        self._is_counted = True

    async def receive(self) -> Message:
        """Pass a message on, noting the end of the body."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._body_read = True
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on, with the request's id among the headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
                (b"x-content-type-options", b"nosniff"),
                *self._cors.headers(self.headers),
                *self._limits(),
            ]
            if not self._body_read or self.is_extra:
                # The unread rest of the body would be taken for the next request.
                message["headers"].append((b"connection", b"close"))
        await self._send(message)

    def _limits(self) -> list[tuple[bytes, bytes]]:
        """Where the limits of the key stand, which a request counts against unless it is refused and may come again."""
        if self.caller is None or not self._is_metered:
            return []
        if self._is_counted and self.status in _GIVES_BACK:
            self._is_counted = False
            self.caller.account.give_request_back()
        return self.caller.account.headers()

    async def answer_preflight(self, cors: Cors) -> None:
        """Tell a browser what a page may send."""
        headers = [*cors.preflight_headers(), (b"content-length", b"0")]
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})

    async def answer(self, error: ApiError) -> None:
        """Send an error, if nothing was sent yet."""
        if self.status:
            return
        self.record.fail(error)
        body = json.dumps(error.body()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    return re.sub(r":\d*$", "", host).lower()
