"""Checks of what chooses tokens: temperature, nucleus, penalties, seed, bias, log-probabilities."""

import math
from typing import Any

from server.benchmarks.exchange import Asker
from server.benchmarks.verdicts import Check, Finding, honoured, ignored, wrong

REPEATS = "List twenty rivers, each with one sentence."
STORY = "Begin a story about a river in the mountains."
BIASED_TOKEN = 1000
ROOM = 1e-3
"""What rounding may add to a sum of probabilities."""


def _greedy(asker: Asker) -> Finding:
    first, second = (asker.ask(STORY, temperature=0).text for _ in range(2))
    return honoured() if first == second else ignored("two texts")


def _hot(asker: Asker) -> Finding:
    texts = {asker.ask(STORY, temperature=1.5).text for _ in range(4)}
    return honoured() if len(texts) > 1 else ignored("four times the same text")


def _top_p(asker: Asker) -> Finding:
    greedy = asker.ask(STORY).text
    if {asker.ask(STORY, temperature=1.5).text for _ in range(3)} == {greedy}:
        return ignored("the greedy text without it, too")
    texts = {asker.ask(STORY, temperature=1.5, top_p=0.001).text for _ in range(3)}
    return honoured() if texts == {greedy} else ignored("other texts than the greedy one")


def _penalty(name: str) -> Any:
    def judge(asker: Asker) -> Finding:
        plain, penalised = (asker.ask(REPEATS, max_tokens=64, **{name: value}).text for value in (0, 2))
        if plain == penalised:
            return ignored("the same text with 0 and 2")
        before, after = _distinct(plain), _distinct(penalised)
        return honoured() if after > before else wrong(f"{after:.2f} of the words are distinct, {before:.2f} without")

    return judge


def _distinct(text: str) -> float:
    words = text.lower().split()
    return len(set(words)) / max(1, len(words))


def _seed(asker: Asker) -> Finding:
    first, again, other = (asker.ask(STORY, temperature=1, seed=seed).text for seed in (7, 7, 8))
    if first != again:
        return ignored("two texts with one seed")
    return honoured() if first != other else ignored("the same text with two seeds")


def _logit_bias(asker: Asker) -> Finding:
    plain = asker.ask(max_tokens=4).text
    biased = asker.ask(max_tokens=4, logit_bias={str(BIASED_TOKEN): 100}).text
    if plain == biased:
        return ignored("the same text without it")
    piece = biased[: len(biased) // 4]
    return honoured() if piece and piece * 4 == biased else wrong(f"{biased!r} is not one token four times")


def _logprobs(asker: Asker) -> Finding:
    answer = asker.ask(logprobs=True)
    tokens = _tokens(answer.choices[0])
    if tokens is None:
        return ignored("no logprobs in the answer")
    if abs(len(tokens) - answer.count("completion_tokens")) > 1:  # the end token may count or not
        return wrong(f"{len(tokens)} entries for {answer.count('completion_tokens')} tokens")
    values = [token["logprob"] for token in tokens]
    return honoured() if all(-math.inf < value <= ROOM for value in values) else wrong("a logprob above 0")


def _top_logprobs(asker: Asker) -> Finding:
    tokens = _tokens(asker.ask(logprobs=True, top_logprobs=5).choices[0])
    if not tokens or not any(token.get("top_logprobs") for token in tokens):
        return ignored("no top_logprobs in the answer")
    for token in tokens:
        top = [one["logprob"] for one in token["top_logprobs"]]
        if len(top) != 5:
            return wrong(f"{len(top)} alternatives in place of 5")
        if top != sorted(top, reverse=True) or sum(map(math.exp, top)) > 1 + ROOM:
            return wrong("alternatives out of order, or above 1 together")
        if abs(token["logprob"] - top[0]) > ROOM:
            return wrong("the greedy token is not the first alternative")
    return honoured()


def _tokens(choice: dict[str, Any]) -> list[dict[str, Any]] | None:
    return (choice.get("logprobs") or {}).get("content")


def _out_of_range(asker: Asker) -> Finding:
    asker.ask(temperature=99)
    return honoured()


def _wrong_type(asker: Asker) -> Finding:
    asker.ask(temperature="hot")
    return honoured()


SAMPLING = (
    Check("temperature", "0", "two requests have the same text", _greedy),
    Check("temperature", "1.5", "four requests do not all have the same text", _hot),
    Check("temperature", "99", "refused", _out_of_range, expects_refusal=True),
    Check("temperature", "a word", "refused", _wrong_type, expects_refusal=True),
    Check("top_p", "0.001, hot", "three requests have the greedy text, and without it not all", _top_p),
    Check(
        "frequency_penalty", "2", "the text is another one, and more of its words are distinct",
        _penalty("frequency_penalty"),
    ),
    Check(
        "presence_penalty", "2", "the text is another one, and more of its words are distinct",
        _penalty("presence_penalty"),
    ),
    Check("seed", "7, 7, 8", "the same seed has the same text, and another seed another", _seed),
    Check("logit_bias", "100 for one token", "the answer is this token alone", _logit_bias),
    Check("logprobs", "true", "each token of the answer has a logprob of at most 0", _logprobs),
    Check(
        "top_logprobs", "5",
        "each token has five, falling, together at most 1, the greedy token first", _top_logprobs,
    ),
)  # fmt: skip
