"""Regular expressions match whole texts here, so anchors at the ends of alternatives say nothing more."""


def without_anchors(regex: str) -> str:
    """The expression without `^` at the start and `$` at the end of its outermost alternatives."""
    return "|".join(map(_strip, alternatives(regex)))


def _strip(regex: str) -> str:
    regex = regex.removeprefix("^")
    escapes = len(regex[:-1]) - len(regex[:-1].rstrip("\\"))
    return regex[:-1] if regex.endswith("$") and escapes % 2 == 0 else regex


def alternatives(regex: str) -> list[str]:
    """The parts between the `|` that stand in no group and no class."""
    parts, begin, depth, in_class, position = [], 0, 0, False, 0
    while position < len(regex):
        match regex[position]:
            case "\\":
                position += 1
            case "]" if in_class:
                in_class = False
            case "[" if not in_class:
                in_class = True
                # A bracket that comes first in a class belongs to it.
                position += regex[position + 1 : position + 2] == "^"
                position += regex[position + 1 : position + 2] == "]"
            case "(" if not in_class:
                depth += 1
            case ")" if not in_class:
                depth -= 1
            case "|" if not in_class and depth == 0:
                parts.append(regex[begin:position])
                begin = position + 1
        position += 1
    return [*parts, regex[begin:]]
