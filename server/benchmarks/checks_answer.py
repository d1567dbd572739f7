"""Checks of where an answer ends and of what it looks like: limits, stop strings, choices, streams, usage."""

from typing import Any

from server.benchmarks.exchange import Asker
from server.benchmarks.verdicts import Check, Finding, honoured, ignored, wrong

NO_MODEL = "no-such-model-anywhere"
NO_FIELD = "no_such_field"
LONG = "Count from one to one hundred in words."


def _limit(name: str) -> Any:
    def judge(asker: Asker) -> Finding:
        fields = {"max_tokens": None, name: 5}
        answer = asker.ask(LONG, **fields)
        tokens = answer.count("completion_tokens")
        if tokens > 5:
            return ignored(f"{tokens} tokens")
        return honoured() if answer.end == "length" else wrong(f"finish_reason {answer.end}")

    return judge


def _stop(shape: str) -> Any:
    def judge(asker: Asker) -> Finding:
        plain = asker.ask(max_tokens=32).text
        words = plain.split()
        if len(words) < 4:
            return wrong(f"an answer too short to stop: {plain!r}")
        stop = words[len(words) // 2]
        given: Any = {"string": stop, "array": [stop], "four": ["\u2603", "\u2602", "\u2601", stop]}[shape]
        answer = asker.ask(max_tokens=32, stop=given)
        if answer.text == plain:
            return ignored("the same text without it")
        before = plain.partition(stop)[0]
        if answer.text.rstrip() != before.rstrip():
            return wrong(f"{answer.text!r} is not what stands before {stop!r}")
        return honoured() if answer.end == "stop" else wrong(f"finish_reason {answer.end}")

    return judge


def _n(asker: Asker) -> Finding:
    choices = asker.ask(n=2, temperature=1).choices
    if len(choices) == 1:
        return ignored("one choice")
    indexes = sorted(choice.get("index", -1) for choice in choices)
    return honoured() if indexes == [0, 1] else wrong(f"choices {indexes}")


def _stream(asker: Asker) -> Finding:
    whole, events = asker.ask(), asker.stream()
    if "text/event-stream" not in events.content_type:
        return ignored(f"content type {events.content_type}")
    if events.text != whole.text:
        return wrong("another text than in one piece")
    ends = [choice.get("finish_reason") for chunk in events.chunks for choice in chunk.get("choices") or ()]
    if [end for end in ends if end] != [whole.end]:
        return wrong(f"finish_reason {ends}")
    return honoured() if events.has_done else wrong("no [DONE] at the end")


def _include_usage(asker: Asker) -> Finding:
    whole = asker.ask()
    chunks = asker.stream(stream_options={"include_usage": True}).chunks
    told = [chunk for chunk in chunks if chunk.get("usage")]
    if not told:
        return ignored("no usage in any chunk")
    last = chunks[-1]
    if last is not told[-1] or last.get("choices"):
        return wrong("the usage does not stand in a last chunk of its own without choices")
    same = all(last["usage"].get(name) == whole.count(name) for name in ("prompt_tokens", "completion_tokens"))
    return honoured() if same else wrong("other counts than in one piece")


def _without_usage(asker: Asker) -> Finding:
    events = asker.stream(stream_options={"include_usage": False})
    if not events.text:
        return wrong("a stream without text")
    told = any(chunk.get("usage") for chunk in events.chunks)
    return ignored("there is usage all the same") if told else honoured()


def _usage(asker: Asker) -> Finding:
    answer = asker.ask()
    prompt, completion, total = map(answer.count, ("prompt_tokens", "completion_tokens", "total_tokens"))
    return honoured() if prompt + completion == total else wrong(f"{prompt} + {completion} is not {total}")


def _shape(asker: Asker) -> Finding:
    answer = asker.ask()
    absent = [name for name in ("id", "created", "model", "system_fingerprint", "usage") if not answer.json.get(name)]
    choice = answer.choices[0]
    absent += [f"choices.{name}" for name in ("index", "finish_reason", "message") if choice.get(name) is None]
    absent += [f"message.{name}" for name in ("role", "content") if answer.message.get(name) is None]
    return wrong(f"without {', '.join(absent)}") if absent else honoured()


def _model(asker: Asker) -> Finding:
    asker.ask(model=NO_MODEL)
    return honoured()


def _unknown(asker: Asker) -> Finding:
    fields: dict[str, Any] = {NO_FIELD: True}
    asker.ask(**fields)
    return honoured()


ANSWERS = (
    Check("max_tokens", "5", "at most five tokens by usage, and finish_reason length", _limit("max_tokens")),
    Check("max_completion_tokens", "5", "the same", _limit("max_completion_tokens")),
    Check("stop", "a string", "the text ends before it, and finish_reason is stop", _stop("string")),
    Check("stop", "an array", "the same", _stop("array")),
    Check("stop", "four", "the same for the last of four", _stop("four")),
    Check("n", "2", "two choices, 0 and 1", _n),
    Check(
        "stream", "true", "server-sent events with the text that comes in one piece, one finish_reason, and [DONE]",
        _stream,
    ),
    Check(
        "stream_options", "include_usage", "a last chunk without choices has the counts that come in one piece",
        _include_usage,
    ),
    Check("stream_options", "include_usage false", "no chunk has usage", _without_usage),
    Check("usage", "of an answer", "prompt and completion add up to the total", _usage),
    Check("answer", "its fields", "all that the contract's schema of answers has are there", _shape),
    Check("model", "an unknown one", "refused", _model, expects_refusal=True),
    Check(NO_FIELD, "a field that is none", "refused", _unknown, expects_refusal=True),
)  # fmt: skip
