"""What is asked: made-up prompts of wanted lengths, or conversations of a file, the same for every server."""

import argparse
import json
import random
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.errors import ConfigError
from server.benchmarks.amounts import whole
from server.benchmarks.prompts import make_prompt

SHIPPED = "shipped"
"""Stands for the conversations that come with this package."""
TOKENS_PER_WORD = 4 / 3
"""Of an answer that a file holds as text: about what English takes."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Numbers of tokens: all the same, or even between two."""

    low: int
    high: int
    is_asked: bool = True
    """Whether somebody has named them; a default else."""

    def of(self, number: int, salt: str) -> int:
        """That of request `number`."""
        return random.Random(f"{salt} {number} length").randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


def lengths(text: str) -> Lengths:
    """Of `128` or `64:256`. Raises `argparse.ArgumentTypeError`."""
    low, _, high = text.partition(":")
    if not low.isdecimal() or not (high or low).isdecimal() or not 1 <= int(low) <= int(high or low):
        raise argparse.ArgumentTypeError(f"must be a number of tokens such as 128, or two such as 64:256, got {text!r}")
    return Lengths(int(low), int(high or low))


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    messages: list[dict[str, Any]]
    max_tokens: int


class Workload:
    """Requests by number; an equal number is an equal request."""

    def __init__(
        self, *, prompt: Lengths, answer: Lengths, shared_prefix: int = 0, seed: int = 0, conversations: str = ""
    ) -> None:
        """`conversations` is a file, or `SHIPPED`; without it prompts are made up. Raises `ConfigError`."""
        self._prompt, self._answer = prompt, answer
        self._shared_prefix, self._seed = shared_prefix, seed
        self._read = read_conversations(conversations) if conversations else []
        if self._read and (prompt.is_asked or shared_prefix):
            raise ConfigError(
                "conversations of a file have lengths of their own",
                hint="leave --prompt-tokens and --shared-prefix out",
            )

    def asked(self, number: int) -> Asked:
        """Request `number`. Files begin again at their end; a seed begins elsewhere."""
        limit = self._answer.of(number, f"{self._seed} answer")
        if self._read:
            messages, own = self._read[(number + self._seed) % len(self._read)]
            if own is not None:
                limit = min(own, self._answer.high) if self._answer.is_asked else own
            return Asked(messages, limit)
        tokens = self._prompt.of(number, f"{self._seed} prompt")
        text = make_prompt(number, tokens=tokens, shared_prefix=self._shared_prefix, seed=self._seed)
        return Asked([{"role": "user", "content": text}], limit)


def add_workload(parser: argparse.ArgumentParser, *, prompt: str = "64", answer: str = "128") -> None:
    """The options that `workload_of` reads."""
    asked = parser.add_argument_group("what is asked")
    asked.add_argument(
        "--prompt-tokens", type=lengths, default=replace(lengths(prompt), is_asked=False), metavar="N[:M]",
        help="length of prompts, fixed or even between two; counted in words, which are about tokens [%(default)s]",
    )  # fmt: skip
    asked.add_argument(
        "--max-tokens", type=lengths, default=replace(lengths(answer), is_asked=False), metavar="N[:M]",
        help="length of answers, fixed or even between two; of a file's conversations the most [%(default)s]",
    )  # fmt: skip
    asked.add_argument(
        "--conversations", default="", metavar="FILE",
        help=f"ask what a file of conversations holds instead; `{SHIPPED}` is one that comes along",
    )  # fmt: skip
    asked.add_argument(
        "--shared-prefix", type=whole, default=0, metavar="N", help="tokens that all prompts begin with [0]"
    )
    asked.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="other prompts, so that those of an earlier run are not found in a cache [0]",
    )  # fmt: skip


def workload_of(options: argparse.Namespace, *, turn: int = 0) -> Workload:
    """What the options say; each `turn` has other prompts. Raises `ConfigError`."""
    return Workload(
        prompt=options.prompt_tokens, answer=options.max_tokens, shared_prefix=options.shared_prefix,
        seed=options.seed + 1_000_000 * turn, conversations=options.conversations,
    )  # fmt: skip


def read_conversations(source: str) -> list[tuple[list[dict[str, Any]], int | None]]:
    """Messages, and the answer's length where the file tells it, of each entry.

    A line of JSON each, or one JSON array. An entry has `messages`, or a `body` with these as in OpenAI's batch
    format, or `conversations` of `from` and `value` as ShareGPT has them. A last turn of the assistant is no part of
    the question; its words, else `max_tokens`, say how long the answer is to be. Raises `ConfigError`.
    """
    try:
        text = _shipped() if source == SHIPPED else Path(source).read_text(encoding="utf-8")
        entries = json.loads(text) if text.lstrip().startswith("[") else list(map(json.loads, text.splitlines()))
        found = [_conversation(entry) for entry in entries]
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{source} is no file of conversations: {error}", hint="see docs/benchmarks.md") from error
    found = [one for one in found if one[0]]
    if not found:
        raise ConfigError(f"{source} holds no conversation")
    return found


def _shipped() -> str:
    return files("server.benchmarks").joinpath("conversations.jsonl").read_text(encoding="utf-8")


_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def _conversation(entry: dict[str, Any]) -> tuple[list[dict[str, Any]], int | None]:
    entry = entry.get("body", entry)
    if "conversations" in entry:
        messages = [{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in entry["conversations"]]
    else:
        messages = [{"role": str(turn["role"]), "content": turn["content"]} for turn in entry["messages"]]
    limit = entry.get("max_tokens") or entry.get("max_completion_tokens")
    if messages and messages[-1]["role"] == "assistant":
        limit = max(1, round(TOKENS_PER_WORD * len(str(messages.pop()["content"]).split())))
    return messages, None if limit is None else int(limit)
