"""A model from Python: the same answers as over HTTP, in order, with its errors; and nothing left when it is closed."""

import asyncio
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import psutil
import pytest
from pydantic import BaseModel

from headrace import LLM, ConfigError, HeadraceError, Piece, RefusedError

TINY = "random://llama?hidden_size=64&intermediate_size=64&num_hidden_layers=2&vocab_size=300&num_attention_heads=4"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(TINY, memory="64MiB", dtype="float32") as found:
        yield found


def test_one_conversation_is_one_answer(llm: LLM) -> None:
    answer = llm.chat("Hello", max_tokens=5, temperature=0, logprobs=True)
    assert answer.finish_reason == "length" and answer.completion_tokens == 5 and answer.prompt_tokens > 0
    assert answer.raw["choices"][0]["message"]["content"] == answer.text
    assert answer.logprobs is not None and len(answer.logprobs["content"]) == 5
    assert llm.chat([{"role": "user", "content": "Hello"}], max_tokens=5, temperature=0).text == answer.text


def test_answers_come_in_the_order_of_their_questions(llm: LLM) -> None:
    prompts = ["ab" * (number % 7 + 1) for number in range(40)]
    together = llm.complete(prompts, max_tokens=6, temperature=0)
    for prompt, answer in islice(zip(prompts, together, strict=True), 7):
        assert not isinstance(answer, RefusedError)
        assert answer.text == llm.complete(prompt, max_tokens=6, temperature=0).text
    assert llm.chat([], max_tokens=1) == [] == llm.complete([])


def test_what_is_refused_is_raised_or_stands_in_its_place(llm: LLM) -> None:
    with pytest.raises(RefusedError) as caught:
        llm.chat("x", temperature=9)
    assert caught.value.status == 400 and caught.value.error["param"] == "temperature"
    conversations: list[Any] = ["fine", [{"role": "nobody", "content": "x"}], "fine"]
    with pytest.raises(RefusedError, match="role"):
        llm.chat(conversations, max_tokens=2)
    first, second, third = llm.chat(conversations, max_tokens=2, temperature=0, errors="return")
    assert isinstance(second, RefusedError)
    assert not isinstance(first, RefusedError) and not isinstance(third, RefusedError) and first.text == third.text
    with pytest.raises(RefusedError, match="unheard_of"):
        llm.chat("x", unheard_of=1)


@pytest.mark.parametrize("field", ["model", "stream", "messages"])
def test_what_is_the_models_own_is_not_given(llm: LLM, field: str) -> None:
    for call in (llm.chat, llm.stream):
        with pytest.raises(ConfigError, match=f"{field} is no field to give here"):
            call("x", **{field: 1})
    for own in ("prompt", "model", "stream"):
        with pytest.raises(ConfigError, match=f"{own} is no field to give here"):
            llm.complete("x", **{own: 1})
    with pytest.raises(ConfigError, match="errors is raise or return"):
        llm.chat(["x"], errors="ignore")  # type: ignore[call-overload]


def test_conversations_may_come_from_anywhere(llm: LLM) -> None:
    given: Any = (text for text in ("a", "b"))
    assert len(llm.chat(given, max_tokens=1)) == 2
    message: Any = {"role": "user", "content": "x"}
    with pytest.raises(ConfigError, match="a list of messages, got one message"):
        llm.chat(message)


def test_n_and_seeds(llm: LLM) -> None:
    answer = llm.chat("x", n=3, seed=7, max_tokens=8)
    again = llm.chat("x", n=3, seed=7, max_tokens=8)
    assert len(answer.choices) == 3 and answer.choices == again.choices
    assert len({choice.text for choice in answer.choices}) > 1


def test_constraints_and_tools(llm: LLM) -> None:
    form = {"type": "regex", "value": "[0-9]{3}"}
    assert llm.chat("x", response_format=form).text.isdecimal()
    tool = {"type": "function", "function": {"name": "go", "parameters": {"properties": {"to": {"enum": ["a", "b"]}}}}}
    (call,) = llm.chat("x", tools=[tool], tool_choice="required", max_tokens=80).tool_calls
    assert call.name == "go" and json.loads(call.arguments).get("to", "a") in ("a", "b")
    relaxed = {
        "name": "x",
        "schema": {"type": "array", "items": {"type": "object"}, "uniqueItems": True, "maxItems": 1},
    }
    assert (
        llm.chat("x", response_format={"type": "json_schema", "json_schema": relaxed}, max_tokens=30).notes is not None
    )


def test_pieces_make_the_whole(llm: LLM) -> None:
    fields: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
    pieces = list(llm.stream("Hello", **fields))
    assert "".join(piece.text for piece in pieces) == llm.chat("Hello", **fields).text
    assert pieces[-1].finish_reason == "length" and all(isinstance(piece, Piece) for piece in pieces)
    with pytest.raises(RefusedError, match="temperature"):
        next(llm.stream("x", temperature=9))


def test_who_stops_reading_ends_the_answer(llm: LLM) -> None:
    stream = llm.stream("x", max_tokens=1500, ignore_eos=True)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert llm.chat("Hello", max_tokens=2).completion_tokens <= 2


def test_what_is_cut_short_is_no_answer(llm: LLM) -> None:
    """The application takes a cancellation for its own end and answers it, which whoever cancelled must not get."""

    async def cut() -> bool:
        body = json.dumps({"prompt": "x", "max_tokens": 1500, "ignore_eos": True}).encode()
        task = asyncio.create_task(llm._server.ask("/v1/completions", body))
        client = llm._server.handle.client
        while client is not None and not client.num_requests and not task.done():
            await asyncio.sleep(0)  # cut at its first moment in the engine: it is not told all at once
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert llm._thread.run(cut())


class Person(BaseModel):
    """Somebody."""

    name: Literal["Ada", "Grace"]
    age: Literal[1, 2]


def test_output_types_of_outlines(llm: LLM) -> None:
    types = pytest.importorskip("outlines.types", reason="the extra headrace[outlines] is not installed")
    assert llm.chat("x", output_type=Literal["yes", "no"]).text in ("yes", "no")
    person = Person.model_validate_json(llm.chat("x", output_type=Person, max_tokens=60).text)
    assert person.name in ("Ada", "Grace")
    assert llm.chat("x", output_type=types.Regex("[ab]{4}")).text.strip("ab") == ""
    schema = types.JsonSchema('{"enum": [12, 34]}')
    assert "".join(piece.text for piece in llm.stream("x", output_type=schema)) in ("12", "34")
    assert llm.chat("x", output_type=types.CFG('start: "ab" | "cd"')).text in ("ab", "cd")
    with pytest.raises(ConfigError, match="no output type"):
        llm.chat("x", output_type=object())


def test_what_cannot_be_loaded_is_said(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="dtype is one of"):
        LLM(TINY, dtype="float8")  # type: ignore[arg-type]
    given: dict[str, Any]
    for given in ({"tensor_parallel": "two"}, {"tensor_parallel": 1.5}, {"context": True}, {"threads": 0}):
        (name,) = given
        with pytest.raises(ConfigError, match=f"{name} is a whole number of at least 1, got "):
            LLM(TINY, **given)
    with pytest.raises(ConfigError, match=r"memory is text, got 0\.5"):
        LLM(TINY, memory=0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no model 'smollm'"):
        LLM("smollm")
    (tmp_path / "config.json").write_text("{}")
    before = _engines()
    with pytest.raises(HeadraceError):
        LLM(tmp_path)
    assert _engines() <= before


def test_closed_it_is_gone() -> None:
    before = _engines()
    llm = LLM(TINY, memory="64MiB")
    assert len(_engines() - before) == 1
    llm.close()
    llm.close()
    assert _engines() <= before
    for ask in (llm.chat, llm.complete, llm.stream):
        with pytest.raises(ConfigError, match="this model is closed"):
            ask("x")


def _engines() -> set[int]:
    """Engine processes of this one."""
    return {child.pid for child in psutil.Process().children(recursive=True) if _is_engine(child)}


def _is_engine(child: psutil.Process) -> bool:
    try:
        return "engine.process" in child.cmdline()
    except psutil.Error:  # it has just ended
        return False
