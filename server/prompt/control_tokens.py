"""Keeps text from users from becoming control tokens.

A tokenizer matches its added tokens in any text it is given, so `<|im_end|>` typed by a user would end the user's turn.
Before a conversation is rendered, a break is put after the first character of every control token that occurs in text
from outside; the rendered prompt is then encoded piece by piece between the breaks. No piece can hold such a token,
whatever the template did to the text, and the model still reads every character that was sent.

The break is one of Unicode's noncharacters for internal use (U+FDD0 to U+FDEF), one that the request does not hold.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from server.protocol.errors import bad_request

_BREAKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_NEVER = re.compile("(?!)")
_CONTROL_FORM = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)  # noqa: RUF001, DeepSeek's tokens have fullwidth bars


def looks_like_control(token: str) -> bool:
    """Whether an added token that its tokenizer does not call special is one by its form, as `<|fim_prefix|>`."""
    return _CONTROL_FORM.fullmatch(token) is not None


class ControlTokens:
    """The control tokens of one tokenizer, as a filter for text from outside.

    A token of a single character cannot be broken and is left out: it is nothing but that character.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = frozenset(token for token in tokens if len(token) > 1)
        alternatives = "|".join(re.escape(token) for token in sorted(self.tokens, key=len, reverse=True))
        # A lookahead finds overlapping tokens too.
        self._pattern = re.compile(f"(?=(?:{alternatives}))") if self.tokens else _NEVER
        self._longest = max(map(len, self.tokens), default=0)
        self._tail_pattern = _tail_pattern(self.tokens)

    def occur_in(self, value: Any) -> bool:
        """Whether any string in `value`, keys included, holds a control token or ends like the start of one."""
        return any(self._pattern.search(text) or self._tail(text) for text in strings_of(value))

    def broken(self, value: Any, mark: str) -> Any:
        """A copy of `value` (strings, lists, dicts, scalars) with `mark` inside every control token.

        A string that ends with the start of a control token gets a mark there too, so that what a template puts
        behind it cannot complete the token.
        """
        if isinstance(value, str):
            return self._break_text(value, mark)
        if isinstance(value, dict):
            return {self.broken(key, mark): self.broken(child, mark) for key, child in value.items()}
        if isinstance(value, list):
            return [self.broken(child, mark) for child in value]
        return value

    def _break_text(self, text: str, mark: str) -> str:
        cuts = {match.start() + 1 for match in self._pattern.finditer(text)}
        tail = self._tail(text)
        if tail is not None:
            cuts.add(tail)
        if not cuts:
            return text
        ends = sorted(cuts)
        return type(text)(mark.join(text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)))

    def _tail(self, text: str) -> int | None:
        """Where to put a mark at the end of `text`: before its trailing white space, which templates trim."""
        end = len(text.rstrip())
        return end if self._tail_pattern.search(text[max(0, end - self._longest) : end]) else None


def _tail_pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    """Matches, at the end of a text, the first characters of a token but not the whole of it.

    Heads of letters alone are let pass: names of roles and fields must reach the template whole.
    """
    heads = {token[:length] for token in tokens for length in range(1, len(token))}
    heads = {head for head in heads if not head.replace("_", "").isalnum()}
    ordered = sorted(heads, key=len, reverse=True)
    return re.compile(rf"(?:{'|'.join(re.escape(head) for head in ordered)})\Z") if heads else _NEVER


def unused_break(value: Any) -> str:
    """A break that occurs nowhere in `value`. Raises `ApiError` 400 in the absurd case that none is left."""
    free = set(_BREAKS)
    for text in strings_of(value):
        if not text.isascii():
            free.difference_update(text)
    if not free:
        raise bad_request("The messages hold all of U+FDD0 to U+FDEF, one of which must be left unused")
    return min(free)


def strings_of(value: Any) -> Iterator[str]:
    """Every string in plain data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from strings_of(key)
            yield from strings_of(child)
    elif isinstance(value, list):
        for child in value:
            yield from strings_of(child)
