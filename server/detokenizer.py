"""Generated token ids to text, piece by piece, with stop strings.

Whatever the pieces, they add up to the text of all ids cut at the first stop string. A piece never holds half a
character, and holds back no more than what could yet become a stop string. The work is linear in the text.
"""

import codecs
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from engine.messages import TokenLogprobs
from server.tokenizer import ChatTokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")
LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say; OpenAI's value for a token that could not come."""


class Detokenizer:
    """The text of one generated sequence."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        hidden_ids: frozenset[int] = frozenset(),
        prompt_tail_ids: Sequence[int] = (),
    ) -> None:
        """`hidden_ids` are never shown, as stop tokens. `prompt_tail_ids` are the end of a text that is continued."""
        self.stopped: str | None = None
        """The stop string that ended the text; whatever is pushed after it is dropped."""
        self._tokenizer = tokenizer
        self._hidden = hidden_ids | tokenizer.special_ids if skip_special_tokens else hidden_ids
        self._decode = _Utf8Decoder("replace").decode
        # A space that begins a whole text is the tokenizer's own; one that continues a text is the model's.
        self._leading_spaces = 0 if prompt_tail_ids else tokenizer.leading_spaces
        self._stops = _StopScanner(tuple(stop), include_stop) if stop else None

    def push(self, ids: Iterable[int]) -> str:
        """The new text that is certain once these ids have come."""
        token_bytes, hidden = self._tokenizer.token_bytes, self._hidden
        return self._take(self._decode(b"".join([token_bytes(i) for i in ids if i not in hidden])))

    def finish(self) -> str:
        """The text that was held back, once no more ids will come. To be called once, last."""
        text = self._take(self._decode(b"", True))
        return text if self._stops is None or self.stopped is not None else text + self._stops.flush()

    def _take(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        while text and self._leading_spaces:
            self._leading_spaces = self._leading_spaces - 1 if text[0] == " " else 0
            text = text.removeprefix(" ")
        if self._stops is None or not text:
            return text
        shown, self.stopped = self._stops.feed(text)
        return shown


class _StopScanner:
    """Finds the stop string that is complete first; of several at once the longest."""

    def __init__(self, stops: tuple[str, ...], include_stop: bool) -> None:
        self._include_stop = include_stop
        self._held = ""
        self._matchers = [_Matcher(stop) for stop in sorted(set(stops), key=len, reverse=True)]

    def feed(self, text: str) -> tuple[str, str | None]:
        """The text that can be shown, and the stop string that was found, if one was."""
        ends = [(matcher.find(text), matcher.stop) for matcher in self._matchers]
        found = min(((end, stop) for end, stop in ends if end is not None), key=lambda pair: pair[0], default=None)
        known = self._held + text
        if found is not None:
            end, stop = found
            return known[: len(self._held) + end - (0 if self._include_stop else len(stop))], stop
        shown = len(known) - max(matcher.state for matcher in self._matchers)
        self._held = known[shown:]
        return known[:shown], None

    def flush(self) -> str:
        """What was held back: the start of a stop string that did not come."""
        held, self._held = self._held, ""
        return held


class _Matcher:
    """The automaton of Knuth, Morris and Pratt for one stop string.

    `state` is how many characters of the stop string the text so far ends with, which is what must be held back.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.state = 0
        self._failures = _failure_table(stop)

    def find(self, text: str) -> int | None:
        """Read more text; the position in it right after the first match, None without one."""
        stop, failures, state = self.stop, self._failures, self.state
        position = 0
        while position < len(text):
            if state == 0:
                position = text.find(stop[0], position) + 1
                if position == 0:
                    break
                state = 1
            else:
                char = text[position]
                while state and stop[state] != char:
                    state = failures[state - 1]
                state += stop[state] == char
                position += 1
            if state == len(stop):
                self.state = 0
                return position
        self.state = state
        return None


@lru_cache(maxsize=256)
def _failure_table(stop: str) -> tuple[int, ...]:
    """For each prefix of `stop`, the length of its longest proper prefix that is its suffix too."""
    table = [0]
    for char in stop[1:]:
        length = table[-1]
        while length and stop[length] != char:
            length = table[length - 1]
        table.append(length + (stop[length] == char))
    return tuple(table)


def logprob_entries(
    tokenizer: ChatTokenizer, ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
) -> list[dict[str, Any]]:
    """OpenAI's `logprobs.content` entries of generated tokens; `ids` and `logprobs` go together one by one."""
    return [
        {
            **_logprob_entry(tokenizer, token_id, values.logprob),
            "top_logprobs": [
                _logprob_entry(tokenizer, top_id, top)
                for top_id, top in zip(values.top_ids, values.top_logprobs, strict=True)
            ],
        }
        for token_id, values in zip(ids, logprobs, strict=True)
    ]


def _logprob_entry(tokenizer: ChatTokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    # max() with the constant first turns a NaN into the constant too.
    return {
        "token": data.decode("utf-8", "replace"),
        "logprob": max(LOWEST_LOGPROB, logprob),
        "bytes": list(data),
    }
