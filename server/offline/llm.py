"""A model to be asked from Python: `from headrace import LLM`.

    with LLM("smollm2") as llm:
        print(llm.chat("What is a headrace?", max_tokens=60).text)
        answers = llm.chat([["Name a river."], ...])

Requests say what they say over HTTP, field by field, and mean the same; docs/offline.md shows it.
"""

import asyncio
import dataclasses
import json
import os
import sys
import typing
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

from tqdm import tqdm

from engine.config import Activations, Dtype, EngineConfig, KvDtype, Quantization
from engine.errors import ConfigError
from server.offline.answers import Answer, Piece, chat_answer, pieces_of, text_answer
from server.offline.local import LocalServer, RefusedError, find_spec
from server.offline.output_types import constraint_fields
from server.offline.thread import LoopThread

Message = Mapping[str, Any]
Conversation = str | Sequence[Message]
"""A user's message, or messages as in a request."""

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CONCURRENCY = 256
"""Requests at a time: more than a step of any size takes, so that the engine never waits for the next."""
_CHOICES = {
    "dtype": typing.get_args(Dtype), "quantization": typing.get_args(Quantization),
    "kv_dtype": typing.get_args(KvDtype), "activations": typing.get_args(Activations),
}  # fmt: skip

_COUNTS = ("tensor_parallel", "context", "threads", "max_num_seqs")
_TEXTS = ("device", "memory")


class LLM:
    """A model in a process of its own, which `close`, or the end of a `with` block, ends."""

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        models: str | os.PathLike[str] | None = None,
        dtype: Dtype | None = None,
        quantization: Quantization | None = None,
        kv_dtype: KvDtype | None = None,
        activations: Activations | None = None,
        device: str | None = None,
        tensor_parallel: int | None = None,
        context: int | None = None,
        memory: str | None = None,
        threads: int | None = None,
        max_num_seqs: int | None = None,
    ) -> None:
        """Load a model: a name of models.yaml, a directory, a .gguf file or a hub id; its default if none is given.

        `models` names another models.yaml; the rest is as that has it, where it is given here in its place. Raises
        `HeadraceError` if the model cannot be loaded.
        """
        given = {
            "dtype": dtype, "quantization": quantization, "kv_dtype": kv_dtype, "activations": activations,
            "device": device, "tensor_parallel": tensor_parallel, "context": context, "memory": memory,
            "threads": threads, "max_num_seqs": max_num_seqs,
        }  # fmt: skip
        spec = find_spec(None if model is None else os.fspath(model), None if models is None else Path(models))
        config = _configured(spec.engine_config(), {name: value for name, value in given.items() if value is not None})
        self._thread = LoopThread()
        self.name = spec.name
        """What the model is called."""
        try:
            self._server: LocalServer = self._thread.run(_started(LocalServer(spec, config)))
        except BaseException:
            self._thread.close()
            raise

    @overload
    def chat(self, conversations: Conversation, *, output_type: Any = ..., **fields: Any) -> Answer: ...

    @overload
    def chat(
        self,
        conversations: Sequence[Conversation],
        *,
        output_type: Any = ...,
        progress: bool | None = ...,
        errors: Literal["raise", "return"] = ...,
        **fields: Any,
    ) -> "list[Answer | RefusedError]": ...

    def chat(
        self,
        conversations: Any,
        *,
        output_type: Any = None,
        progress: bool | None = None,
        errors: Literal["raise", "return"] = "raise",
        **fields: Any,
    ) -> Any:
        """The assistant's next turn; of a list of conversations a list of them, in its order.

        A conversation is a string, which is a user's message, or a list of messages. `fields` are those of
        /v1/chat/completions but `model`, `messages` and `stream`. `output_type` is a type of Outlines, which the
        answer's text will be of. `progress` draws a bar; by default for lists, on a terminal. Raises `RefusedError` for
        the first request that is refused, once all have been answered; with `errors="return"` it stands in that one's
        place.
        """
        _refuse(fields, CHAT, "messages")
        if output_type is not None:
            fields |= constraint_fields(output_type)
        if isinstance(conversations, Mapping):
            raise ConfigError(
                "a conversation is text or a list of messages, got one message", hint="put it into a list"
            )
        conversations = conversations if isinstance(conversations, str | Sequence) else list(conversations)
        if is_one := _is_conversation(conversations):
            conversations = [conversations]
        bodies = [{**fields, "messages": _messages(conversation)} for conversation in conversations]
        answers = self._ask_all(CHAT, bodies, chat_answer, progress=not is_one and _shows(progress), errors=errors)
        return answers[0] if is_one else answers

    @overload
    def complete(self, prompts: str, *, output_type: Any = ..., **fields: Any) -> Answer: ...

    @overload
    def complete(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        output_type: Any = ...,
        progress: bool | None = ...,
        errors: Literal["raise", "return"] = ...,
        **fields: Any,
    ) -> "list[Answer | RefusedError]": ...

    def complete(
        self,
        prompts: Any,
        *,
        output_type: Any = None,
        progress: bool | None = None,
        errors: Literal["raise", "return"] = "raise",
        **fields: Any,
    ) -> Any:
        """What follows a raw prompt, or each of a list of texts or of token ids.

        `fields` are those of /v1/completions but `model`, `prompt` and `stream`. Else as `chat`.
        """
        _refuse(fields, COMPLETIONS, "prompt")
        if output_type is not None:
            fields |= constraint_fields(output_type)
        is_one = isinstance(prompts, str)
        bodies = [{**fields, "prompt": prompt} for prompt in ([prompts] if is_one else prompts)]
        answers = self._ask_all(
            COMPLETIONS, bodies, text_answer, progress=not is_one and _shows(progress), errors=errors
        )
        return answers[0] if is_one else answers

    def stream(self, conversation: Conversation, *, output_type: Any = None, **fields: Any) -> Iterator[Piece]:
        """The pieces of an answer as they come. Who stops before its end ends it. Raises `RefusedError`."""
        _refuse(fields, CHAT, "messages")
        self._check_open()
        if output_type is not None:
            fields |= constraint_fields(output_type)
        body = {**fields, "messages": _messages(conversation), "model": self.name, "stream": True}
        return self._thread.iterate(self._pieces(json.dumps(body).encode()))

    async def _pieces(self, body: bytes) -> AsyncIterator[Piece]:
        async with aclosing(self._server.events(CHAT, body)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                for piece in pieces_of(chunk):
                    yield piece

    def _ask_all(
        self, path: str, bodies: list[dict[str, Any]], made: Any, *, progress: bool, errors: Literal["raise", "return"]
    ) -> list[Any]:
        if errors not in ("raise", "return"):
            raise ConfigError(f"errors is raise or return, got {errors!r}")
        self._check_open()
        with tqdm(total=len(bodies), disable=not progress, unit="answer", dynamic_ncols=True) as bar:
            answers = self._thread.run(self._gather(path, bodies, made, bar))
        failed = next((answer for answer in answers if isinstance(answer, RefusedError)), None)
        if failed is not None and errors == "raise":
            raise failed
        return answers

    async def _gather(self, path: str, bodies: list[dict[str, Any]], made: Any, bar: Any) -> list[Any]:
        """Answers in the order of their requests; as many at a time as keeps the engine busy."""
        places = asyncio.Semaphore(CONCURRENCY)

        async def one(body: dict[str, Any]) -> Any:
            async with places:
                try:
                    reply = await self._server.ask(path, json.dumps({**body, "model": self.name}).encode())
                    return made(reply.json(), reply.headers)
                except RefusedError as error:
                    return error
                finally:
                    bar.update()

        return await asyncio.gather(*map(one, bodies))

    def _check_open(self) -> None:
        if not self._thread.is_open:
            raise ConfigError("this model is closed", hint="what is asked belongs before close, or into the with block")

    def close(self) -> None:
        """End the model's process. Idempotent."""
        if self._thread.is_open:
            self._thread.run(self._server.stop())
            self._thread.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


async def _started(server: LocalServer) -> LocalServer:
    try:
        await server.start()
    except BaseException:
        await server.stop()
        raise
    return server


def _configured(config: EngineConfig, given: Mapping[str, Any]) -> EngineConfig:
    for name, value in given.items():
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ConfigError(f"{name} is one of {', '.join(_CHOICES[name])}, got {value!r}")
        if name in _COUNTS and (type(value) is not int or value < 1):
            raise ConfigError(f"{name} is a whole number of at least 1, got {value!r}")
        if name in _TEXTS and not isinstance(value, str):
            raise ConfigError(f"{name} is text, got {value!r}")
    return dataclasses.replace(config, **given)


def _refuse(fields: Mapping[str, Any], path: str, *own: str) -> None:
    """Raise `ConfigError` for a field that is not the caller's to give."""
    for name in ("model", "stream", *own):
        if name in fields:
            hint = "pieces come from LLM.stream" if name == "stream" and path == CHAT else None
            raise ConfigError(f"{name} is no field to give here, got {fields[name]!r}", hint=hint)


def _is_conversation(given: Any) -> bool:
    """Whether it is one conversation, not a list of them."""
    return isinstance(given, str) or bool(given and isinstance(given[0], Mapping))


def _messages(conversation: Any) -> list[Message]:
    if isinstance(conversation, str):
        return [{"role": "user", "content": conversation}]
    return list(conversation)


def _shows(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress
