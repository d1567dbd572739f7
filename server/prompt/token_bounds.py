"""How many tokens a text has at the least, found without tokenising it.

A prompt of megabytes would be tokenised for seconds only to be refused. No token with a byte b in it is longer than
L(b), the longest such token of the vocabulary. So the bytes of a text, each counted as 1 / L(b), add up to no more
than its tokens: for each token the sum over its own bytes is at most 1.
"""

import json
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from server.protocol.errors import context_length_exceeded

_DROPS_TEXT = ('"Removed"', '"Whitespace', '"Bert', '"Strip"')
"""Words in a pre-tokenizer's description that say it may drop what it was given."""


class TokenBounds:
    """Made for one tokenizer; the vocabulary is read when a text is first long enough to matter."""

    def __init__(self, tokenizer: Tokenizer, token_bytes: Callable[[int], bytes]) -> None:
        self._tokenizer = tokenizer
        self._token_bytes = token_bytes

    def check(self, text: str, context: int, param: str) -> None:
        """Raise `ApiError` 400 if `text` certainly has more tokens than `context`."""
        # No vocabulary holds every byte in tokens of this length only, so shorter texts are never decided here.
        if len(text) <= 2 * context:
            return
        fewest = self.fewest(text)
        if fewest > context:
            raise context_length_exceeded(
                f"This model's context is {context} tokens and {param} has at least {fewest} tokens, which leaves no "
                "room for an answer; shorten it",
                param=param,
            )

    def fewest(self, text: str) -> int:
        """A number of tokens that `text` has at the least, be it ever so much below the true one."""
        if not self._classes:
            return 0
        normalizer = self._tokenizer.normalizer
        normal = text if normalizer is None else normalizer.normalize_str(text)
        data = normal.replace("▁", " ").encode()  # SentencePiece's sign for a space, which its tokens hold as a space
        return math.ceil(sum(len(data.translate(None, others)) / longest for longest, others in self._classes))

    @cached_property
    def _classes(self) -> list[tuple[int, bytes]]:
        """Length of the longest tokens (powers of two), and all bytes that are not of tokens of that length."""
        if _drops_text(self._tokenizer):
            return []
        longest = [0] * 256
        known = set()
        for token_id in range(self._tokenizer.get_vocab_size(with_added_tokens=True)):
            token = self._token_bytes(token_id)
            if len(token) == 1:
                known.add(token[0])
            for byte in set(token):
                longest[byte] = max(longest[byte], len(token))
        if any(token.lstrip or token.rstrip for token in self._tokenizer.get_added_tokens_decoder().values()):
            known -= set(b" \t\n\r\v\f")  # such a token swallows the white space around it
        # A byte without a token of its own may be dropped, or many be one unknown token: these count for nothing.
        found: dict[int, set[int]] = {}
        for byte in known:
            found.setdefault(1 << (longest[byte] - 1).bit_length(), set()).add(byte)
        return [(length, bytes(set(range(256)) - members)) for length, members in sorted(found.items())]


def _drops_text(tokenizer: Tokenizer) -> bool:
    description: Any = json.loads(tokenizer.to_str(pretty=False)).get("pre_tokenizer")
    text = json.dumps(description)
    return any(word in text for word in _DROPS_TEXT)
