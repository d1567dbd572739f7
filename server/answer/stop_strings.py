"""Finds stop strings in text that comes in pieces, and holds back no more than what could yet become one.

The work is linear in the text, whatever the pieces.
"""

from functools import lru_cache


class StopScanner:
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
