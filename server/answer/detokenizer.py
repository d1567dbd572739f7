"""Generated token ids to text, piece by piece. A piece never holds half a character, and nothing else is held back."""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from engine.messages import TokenLogprobs
from server.prompt.tokenizer import ChatTokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")
LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say; OpenAI's value for a token that could not come."""


class Detokenizer:
    """The text of one generated sequence."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        skip_special_tokens: bool = True,
        hidden_ids: frozenset[int] = frozenset(),
        shown_ids: frozenset[int] = frozenset(),
        prompt_tail_ids: Sequence[int] = (),
    ) -> None:
        """`hidden_ids` are never shown, as stop tokens; `shown_ids` always, unless hidden, special or not.

        `prompt_tail_ids` are the end of a text that is continued.
        """
        self._tokenizer = tokenizer
        self._hidden = hidden_ids | (tokenizer.special_ids - shown_ids if skip_special_tokens else frozenset())
        self._decoder = _Utf8Decoder("replace")
        self._decode = self._decoder.decode
        # A space that begins a whole text is the tokenizer's own; one that continues a text is the model's.
        self._leading_spaces = 0 if prompt_tail_ids else tokenizer.leading_spaces

    @property
    def is_whole(self) -> bool:
        """Whether the bytes so far end with a whole character."""
        return not self._decoder.getstate()[0]

    def hides(self, token_id: int) -> bool:
        """Whether a token is never shown."""
        return token_id in self._hidden

    def push(self, ids: Iterable[int]) -> str:
        """The new text that is certain once these ids have come."""
        token_bytes, hidden = self._tokenizer.token_bytes, self._hidden
        return self._take(self._decode(b"".join([token_bytes(i) for i in ids if i not in hidden])))

    def finish(self) -> str:
        """The text that was held back, once no more ids will come. To be called once, last."""
        return self._take(self._decode(b"", True))

    def _take(self, text: str) -> str:
        while text and self._leading_spaces:
            self._leading_spaces = self._leading_spaces - 1 if text[0] == " " else 0
            text = text.removeprefix(" ")
        return text


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
