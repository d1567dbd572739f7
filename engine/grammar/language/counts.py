"""How large an expression is once its counts are written out, told before anything is made of it."""

import re

MAX_POSITIONS = 200_000
"""Beyond these an expression costs the compiler seconds, to be refused by it or to be too slow to follow."""
_PIECE = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(?P<open>\()(?:\?(?:[:=!]|<[=!]|P?<\w+>))?|(?P<close>\))"
    r"|\{(?P<least>\d+)(?:,(?P<most>\d*))?\}|(?P<mark>[*+?|])|.",
    re.DOTALL,
)


def positions(pattern: str) -> int:
    """How many characters and classes it has, each as often as its counts say; at most one above `MAX_POSITIONS`."""
    total = last = 0
    outer: list[int] = []
    for piece in _PIECE.finditer(pattern):
        match piece.lastgroup:
            case "open":
                outer.append(total)
                total = last = 0
            case "close":
                last = total
                total += outer.pop() if outer else 0
            case "least" | "most":
                times = max(int(piece["most"] or piece["least"][:9]), 1) if len(piece[0]) < 20 else MAX_POSITIONS + 1
                total += last * (times - 1)
                last *= times
            case "mark":
                last = 0 if piece[0] == "|" else last
            case _:
                last = 1
                total += 1
        if total > MAX_POSITIONS:
            return MAX_POSITIONS + 1
    return min(total + sum(outer), MAX_POSITIONS + 1)
