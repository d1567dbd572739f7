"""Clients that ask two models all the time, and see to it that each of them is answered, told, or counted as lost."""

import json
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from tests.server.patient import NO_CERTIFICATES

QUESTIONS = ("hi", "Name three colours.", "What is the capital of France?", "Count to ten.")
Kind = Literal["answered", "told", "lost", "wrong"]


@dataclass(frozen=True)
class Outcome:
    """What became of one request. `told` has the error's code in `detail`, the others what was amiss."""

    model: str
    kind: Kind
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Asker:
    """How one server is asked. A request that has no end after `patience` seconds is lost."""

    url: str
    patience: float = 90.0

    def body(self, model: str, question: str, *, max_tokens: int = 16, **more: Any) -> dict[str, Any]:
        """A request whose answer is the same each time."""
        messages = [{"role": "user", "content": question}]
        return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **more}

    def ask(self, body: dict[str, Any], expected: str | None = None) -> Outcome:
        """Send a request and judge what comes; `expected` is the text it must have, None for any."""
        model, began = body["model"], time.monotonic()
        try:
            kind, detail = self._stream(body, expected) if body.get("stream") else self._whole(body, expected)
        except httpx.HTTPError as error:
            kind, detail = "lost", f"{type(error).__name__}: {error}"
        return Outcome(model, kind, detail, time.monotonic() - began)

    def text(self, body: dict[str, Any]) -> str:
        """The answer's text and its end, where nothing is in the way."""
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=self.patience, verify=NO_CERTIFICATES)
        return _shown(answer.raise_for_status().json()["choices"][0])

    def _whole(self, body: dict[str, Any], expected: str | None) -> tuple[Kind, str]:
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=self.patience, verify=NO_CERTIFICATES)
        if answer.status_code != 200:
            return _told(answer.text)
        return _compared(_shown(answer.json()["choices"][0]), expected)

    def _stream(self, body: dict[str, Any], expected: str | None) -> tuple[Kind, str]:
        text, reason, deadline = "", None, time.monotonic() + self.patience
        with httpx.stream(
            "POST", f"{self.url}/v1/chat/completions", json=body, timeout=self.patience, verify=NO_CERTIFICATES
        ) as answer:
            if answer.status_code != 200:
                return _told(answer.read().decode())
            told: tuple[Kind, str] | None = None
            for line in answer.iter_lines():
                if time.monotonic() > deadline:
                    return "lost", "the stream has no end"
                if line == "data: [DONE]":
                    return told or _compared(f"{text}|{reason}", expected)
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    told = _told(line.removeprefix("data: "))
                    continue
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    reason = choice["finish_reason"] or reason
        return "lost", "the stream ended without [DONE]"


@dataclass
class Crowd:
    """So many threads, each asking one of the models over and over; `expected` has the answers of a quiet server."""

    asker: Asker
    expected: dict[tuple[str, str], str]
    seed: int
    num_clients: int = 4
    outcomes: list[Outcome] = field(default_factory=list)
    """Since somebody last took them."""

    def __post_init__(self) -> None:
        self._lock = threading.Condition()
        self._paused = True
        self._ended = False
        self._busy = 0
        self._threads = [threading.Thread(target=self._keep_asking, args=(n,)) for n in range(self.num_clients)]

    def __enter__(self) -> "Crowd":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._ended = True
            self._lock.notify_all()
        for thread in self._threads:
            thread.join()

    def go_on(self) -> None:
        """Ask."""
        with self._lock:
            self._paused = False
            self._lock.notify_all()

    def pause(self) -> None:
        """Ask no more, and wait until everybody has an answer or has lost patience."""
        with self._lock:
            self._paused = True
            self._lock.wait_for(lambda: self._busy == 0)

    def take(self) -> list[Outcome]:
        """What has become of all requests since the last call."""
        with self._lock:
            outcomes, self.outcomes = self.outcomes, []
        return outcomes

    def _keep_asking(self, number: int) -> None:
        models = sorted({model for model, _ in self.expected})
        model, lot = models[number % len(models)], random.Random(f"{self.seed} {number}")
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._ended or not self._paused)
                if self._ended:
                    return
                self._busy += 1
            question, stream = lot.choice(QUESTIONS), lot.random() < 0.5
            outcome = self.asker.ask(self.asker.body(model, question, stream=stream), self.expected[model, question])
            with self._lock:
                self.outcomes.append(outcome)
                self._busy -= 1
                self._lock.notify_all()
            if outcome.kind != "answered":
                time.sleep(0.2)


def _shown(choice: dict[str, Any]) -> str:
    return f"{choice['message']['content']}|{choice['finish_reason']}"


def _compared(text: str, expected: str | None) -> tuple[Kind, str]:
    if expected is None or text == expected:
        return "answered", ""
    return "wrong", f"{text!r} instead of {expected!r}"


def _told(text: str) -> tuple[Kind, str]:
    """An error counts as told only if it is one of the API's."""
    try:
        return "told", str(json.loads(text)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "lost", f"what came is neither an answer nor an error: {text[:200]!r}"
