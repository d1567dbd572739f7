"""What is known of one request once it has been answered: enough for the log and for traces, and no text."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from server.protocol.errors import ApiError


@dataclass(slots=True)
class RequestRecord:
    """One request. Whoever learns something of it writes it down here; what does not apply stays None."""

    request_id: str
    method: str
    target: str
    """The path, without a byte that could forge a line of the log."""
    traceparent: str | None = None
    tracestate: str | None = None
    """As the client sent them."""
    began: float = field(default_factory=time.monotonic)
    began_at: int = field(default_factory=time.time_ns)
    """When it came, by the monotonic clock in seconds and by the calendar in nanoseconds since 1970."""
    seconds: float = 0.0
    """Until its last byte was sent."""
    status: int = 0
    """0 if the client left before there was one."""
    key: str | None = None
    """The name of the key that came with it, never the key."""
    model: str | None = None
    stream: bool | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    submitted: float | None = None
    """Seconds until the engine was asked; this and the others are counted from `began`."""
    queue: float | None = None
    """Seconds from the engine's hearing of it to its first step."""
    first_token: float | None = None
    finish: list[str] = field(default_factory=list)
    """How its choices ended, in order."""
    error: str | None = None
    """The code of the error that it was answered with, or that its stream ended with; never the message, which may
    hold some of the request.
    """
    reason: str | None = None
    """Which limit or state the error comes of, where its code leaves that open."""

    def fail(self, error: ApiError) -> None:
        """This error is what the client is told."""
        self.error, self.reason = error.code or error.type, error.reason

    def end(self, status: int) -> None:
        """It has been answered."""
        self.status = status
        self.seconds = time.monotonic() - self.began

    def fields(self) -> dict[str, Any]:
        """What is known, under the names that the log has for it; times in seconds."""
        known = {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.target,
            "status": self.status or None,
            "key": self.key,
            "model": self.model,
            "stream": self.stream,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "queue_seconds": _rounded(self.queue),
            "first_token_seconds": _rounded(self.first_token),
            "seconds": _rounded(self.seconds),
            "finish_reason": ",".join(self.finish) or None,
            "error": self.error,
            "error_reason": self.reason,
        }
        return {name: value for name, value in known.items() if value is not None}

    def line(self) -> str:
        """The same for people, in one line."""
        named = {
            "id": self.request_id,
            "key": self.key,
            "model": self.model,
            "prompt": self.prompt_tokens,
            "answer": self.completion_tokens,
            "queue": _short(self.queue),
            "first": _short(self.first_token),
            "finish": ",".join(self.finish) or None,
            "error": self.error,
            "reason": self.reason,
        }
        more = " ".join(f"{name}={value}" for name, value in named.items() if value is not None)
        return f"{self.method} {self.target} {self.status or 'gone'} in {self.seconds:.3f} s {more}"


Reporter = Callable[[RequestRecord], None]
"""What is told of every request that was answered, once it was; must not raise and must not wait."""


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _short(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds:.3f}"
