"""What stops the rewriting of a schema, and the limits on its work."""

import re

MAX_DEPTH = 100
MAX_STEPS = 50_000
MAX_BRANCHES = 64
"""Alternatives that one keyword may be spelled out into."""

MAX_CHOICES = 1000
"""Sets of values of one kind that a schema may come down to."""

MAX_PLACES = 4
"""An item that must be somewhere in an array is looked for in so many places from the front; answers that would have
it only behind them are not given, which refuses some values that the schema accepts, and accepts none that it refuses.
"""
_SAYS_SO = re.compile(" (?:cannot|to) be followed(?: exactly)?$")


class SchemaFault(Exception):
    """A keyword at `pointer` (RFC 6901) that is malformed or, in the classes below, cannot be followed exactly."""

    def __init__(self, pointer: str, problem: str) -> None:
        super().__init__(f"at {pointer or 'the top'}: {problem}")
        self.pointer = pointer
        self.problem = problem


class Beyond(SchemaFault):
    """What is asked for is well-formed, but takes more than is done here."""


class Unfollowable(Beyond):
    """A keyword of the schema `at` a pointer is well-formed, but no grammar of ours says exactly that."""

    def __init__(self, at: str, keyword: str, why: str) -> None:
        super().__init__(f"{at}/{escape(keyword)}", f"{keyword!r} {why}")
        self.at = at
        self.keyword = keyword


class Unplaced(SchemaFault):
    """What a keyword has become cannot be followed exactly; where it stood is not known any more."""

    def __init__(self, problem: str) -> None:
        Exception.__init__(self, problem)


def because(why: str) -> str:
    """That something cannot be followed, and why, of what may say the former itself."""
    said = why.rpartition("cannot be followed: ")[2]
    return f"cannot be followed: {_SAYS_SO.sub('', said)}"


class Budget:
    """Steps and depth left for one schema; hostile schemas spell out into billions of alternatives."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._depth = 0

    def spend(self, steps: int = 1) -> None:
        """Note some work. Raises `Beyond`."""
        self._steps -= steps
        if self._steps < 0:
            raise Beyond("", f"it spells out into more than {MAX_STEPS} parts")

    def __enter__(self) -> None:
        self._depth += 1
        self.spend()
        if self._depth > MAX_DEPTH:
            raise Beyond("", f"it is nested deeper than {MAX_DEPTH}")

    def __exit__(self, *_: object) -> None:
        self._depth -= 1


def escape(name: str) -> str:
    """A name as a segment of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
