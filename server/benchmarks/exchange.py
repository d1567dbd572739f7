"""Single requests to a chat endpoint and their answers, as they are, for judging them."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from engine.errors import ConfigError


class RefusedError(Exception):
    """A status from 400 to 499."""

    def __init__(self, status: int, text: str) -> None:
        """`text` is the body."""
        super().__init__(f"status {status}: {' '.join(text.split())[:160]}")
        self.text = text

    def names(self, name: str) -> bool:
        """Whether the refusal says which field it is about."""
        return name in self.text


class BrokenError(Exception):
    """No answer, an answer that cannot be read, or a status from 500 on."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, with short ways to what is in it. Raises `BrokenError` where that is not there."""

    json: dict[str, Any]

    @property
    def choices(self) -> list[dict[str, Any]]:
        """All choices, at least one."""
        found = self.json.get("choices")
        if not isinstance(found, list) or not found or not isinstance(found[0], dict):
            raise BrokenError(f"an answer without choices: {str(self.json)[:160]}")
        return found

    @property
    def message(self) -> dict[str, Any]:
        """Of the first choice."""
        message = self.choices[0].get("message")
        if not isinstance(message, dict):
            raise BrokenError("a choice without a message")
        return message

    @property
    def text(self) -> str:
        """Content of the first choice, empty where it has none."""
        return str(self.message.get("content") or "")

    @property
    def end(self) -> str:
        """Why the first choice ended."""
        return str(self.choices[0].get("finish_reason"))

    def count(self, name: str) -> int:
        """A number of `usage`."""
        value = (self.json.get("usage") or {}).get(name)
        if not isinstance(value, int):
            raise BrokenError(f"an answer without usage.{name}")
        return value


@dataclass(frozen=True, slots=True)
class Events:
    """A streamed answer."""

    content_type: str
    chunks: list[dict[str, Any]] = field(default_factory=list)
    has_done: bool = False
    """Whether `[DONE]` ended it."""

    @property
    def deltas(self) -> list[dict[str, Any]]:
        """Of the first choice."""
        return [choice.get("delta") or {} for chunk in self.chunks for choice in chunk.get("choices") or ()]

    @property
    def text(self) -> str:
        """All content together."""
        return "".join(delta.get("content") or "" for delta in self.deltas)


class Asker:
    """Sends requests that differ from a plain one in what is said."""

    def __init__(self, url: str, *, model: str | None, api_key: str = "", timeout: float = 120.0) -> None:
        """With a `model` of None requests name none. Raises `ConfigError`."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url: {url!r} is not an http or https address")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._timeout = parts.hostname, parts.port, timeout
        self._path = f"{parts.path.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._model = model

    def ask(self, prompt: str = "Tell me about a river.", **fields: Any) -> Answer:
        """A greedy answer of at most 24 tokens, unless `fields` say otherwise. Raises `RefusedError`, `BrokenError`."""
        _, body = self._post(self._body(prompt, fields))
        try:
            found = json.loads(body)
        except ValueError:
            raise BrokenError(f"an answer that is no JSON: {body[:100]!r}") from None
        if not isinstance(found, dict):
            raise BrokenError("an answer that is no JSON object")
        return Answer(found)

    def stream(self, prompt: str = "Tell me about a river.", **fields: Any) -> Events:
        """The same, streamed."""
        content_type, body = self._post(self._body(prompt, {**fields, "stream": True}))
        lines = [line[5:].strip() for line in body.decode("utf-8", "replace").splitlines() if line.startswith("data:")]
        try:
            chunks = [json.loads(line) for line in lines if line != "[DONE]"]
        except ValueError:
            raise BrokenError("a chunk that is no JSON") from None
        if not chunks and "text/event-stream" in content_type:
            raise BrokenError("a stream without chunks")
        return Events(content_type, chunks, "[DONE]" in lines[-1:])

    def _body(self, prompt: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        plain: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 24, "temperature": 0}
        if self._model is not None:
            plain["model"] = self._model
        return {name: value for name, value in {**plain, **fields}.items() if value is not None}

    def _post(self, body: dict[str, Any]) -> tuple[str, bytes]:
        connection = self._kind(self._host, self._port, timeout=self._timeout)
        try:
            connection.request("POST", self._path, json.dumps(body), self._headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise BrokenError(f"no answer: {error or type(error).__name__}") from None
        finally:
            connection.close()
        if 400 <= answer.status < 500:
            raise RefusedError(answer.status, content.decode("utf-8", "replace"))
        if answer.status != 200:
            raise BrokenError(f"status {answer.status}: {content[:120].decode('utf-8', 'replace')}")
        return answer.getheader("Content-Type") or "", content
