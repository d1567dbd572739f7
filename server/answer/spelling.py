"""Which tokens spell the content of an answer, for the log-probabilities of a chat.

Of reasoning, calls, control tokens and ends a chat's `logprobs.content` says nothing: its entries, laid end to end, are
the content. So tokens wait until it is known how much of their text was shown. A token that a stop string has cut
through keeps its log-probability and has the bytes that are left of it.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

Entry = dict[str, Any]


@dataclass(slots=True)
class _Group:
    """Tokens that make up whole characters together, nearly always one, and where their text stands in the answer's."""

    start: int
    end: int
    entries: list[Entry]
    shown: list[tuple[int, int]] = field(default_factory=list)
    """Pieces of the text that were shown, as positions in it."""

    def show(self, start: int, end: int) -> None:
        """A piece was shown, behind those before it."""
        if self.shown and self.shown[-1][1] == start:
            start, _ = self.shown.pop()
        self.shown.append((start, end))


class Spelling:
    """The tokens of one answer on their way into its log-probabilities."""

    def __init__(self) -> None:
        self._position = 0
        """Characters of the answer's text so far."""
        self._unfinished: list[Entry] = []
        """Tokens whose last character has not come yet."""
        self._open: _Group | None = None
        """The group they make up, from when some text of theirs has come."""
        self._waiting: deque[_Group] = deque()
        self._written: deque[tuple[int, int]] = deque()
        """Pieces of content, as positions in the answer's text, of which it is open whether they are shown."""

    def read(self, entry: Entry | None, text: str, *, is_whole: bool = True) -> None:
        """Text of the answer came with a token, or with none at its end. Without `is_whole` a character is open."""
        if entry is not None:
            self._unfinished.append(entry)
        start, self._position = self._position, self._position + len(text)
        if text:
            if self._open is None:
                self._open = _Group(start, start, self._unfinished)
                self._waiting.append(self._open)
            self._open.end = self._position
        if is_whole:
            self._unfinished, self._open = [], None

    def forget(self) -> None:
        """What came last is no content for certain."""
        if self._waiting and not self._waiting[-1].shown:
            self._waiting.pop()

    def write(self, start: int, length: int) -> None:
        """So many characters of the answer's text from `start` on are content, unless a stop string hides them."""
        self._written.append((start, start + length))

    def show(self, length: int) -> list[Entry]:
        """So many more characters of the content were shown; the entries of tokens that this completes."""
        while length:
            start, end = self._written.popleft()
            if end - start > length:
                self._written.appendleft((start + length, end))
                end = start + length
            length -= end - start
            for group in self._waiting:
                if group.start >= end:
                    break
                if group.end > start:
                    group.show(max(start, group.start) - group.start, min(end, group.end) - group.start)
        return self._take()

    def finish(self) -> list[Entry]:
        """The entries of what was shown of the last tokens, once nothing more will be shown."""
        return [entry for group in self._waiting for entry in _shown_entries(group, is_open=group is self._open)]

    def _take(self) -> list[Entry]:
        """What comes before shown content is decided, for content is shown in its order."""
        last = next((number for number, group in reversed(list(enumerate(self._waiting))) if group.shown), -1)
        if last >= 0:
            group = self._waiting[last]
            last -= group is self._open or group.shown[-1][1] < group.end - group.start
        return [entry for _ in range(last + 1) for entry in _shown_entries(self._waiting.popleft())]


def _shown_entries(group: _Group, *, is_open: bool = False) -> list[Entry]:
    """The group's entries, without the bytes that were not shown. Of one that is open, a last character is missing."""
    if not group.shown:
        return []
    edges = _edges(b"".join(bytes(entry["bytes"]) for entry in group.entries))
    # A space that begins a whole text is the tokenizer's own, and no part of it.
    lost = len(edges) - 1 - is_open - (group.end - group.start)
    assert lost >= 0, "an answer's text is what its tokens spell"
    kept = [(edges[start + lost], edges[end + lost]) for start, end in group.shown]
    entries: list[Entry] = []
    place = 0
    for entry in group.entries:
        data = bytes(entry["bytes"])
        left = b"".join(data[max(start - place, 0) : max(end - place, 0)] for start, end in kept)
        place += len(data)
        if left:
            entries.append(
                entry if left == data else entry | {"token": left.decode("utf-8", "replace"), "bytes": list(left)}
            )
    return entries


def _edges(data: bytes) -> list[int]:
    """Where the characters of a text begin in its bytes, and where the last one ends.

    Bytes that are no text count as those characters that they are shown as.
    """
    edges = [0]
    while edges[-1] < len(data):
        left = data[edges[-1] :]
        try:
            text, bad = left.decode(), 0
        except UnicodeDecodeError as error:
            text, bad = left[: error.start].decode(), error.end - error.start
        for character in text:
            edges.append(edges[-1] + len(character.encode()))
        if bad:
            edges.append(edges[-1] + bad)
    return edges
