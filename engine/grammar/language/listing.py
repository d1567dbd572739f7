"""All texts of a language, where these are few."""

from engine.grammar.language.expression import Languages
from engine.grammar.language.node import Node


def words(languages: Languages, start: Node, most: int) -> list[str] | None:
    """All texts of an expression, in order; None if there are more than `most`. Raises `LanguageError`."""
    if _are_more(languages, start, most):
        return None
    found: list[str] = []
    stack = [] if languages.is_empty(start) else [(start, "")]
    while stack:
        node, text = stack.pop()
        found += [text] if node.nullable else []
        following: list[tuple[Node, str]] = []
        for low, high in languages.steps(node):
            after = languages.derivative(node, low)
            if not languages.is_empty(after):
                following += [(after, text + chr(code)) for code in range(low, high + 1)]
        stack += reversed(following)
    return found


def _are_more(languages: Languages, start: Node, most: int) -> bool:
    """Whether there are more texts than that, told from how many beginnings of one length lead to a text."""
    level, shorter = ({} if languages.is_empty(start) else {start: 1}), 0
    while level:
        shorter += sum(count for node, count in level.items() if node.nullable)
        longer: dict[Node, int] = {}
        known = shorter
        for node, count in level.items():
            for low, high in languages.steps(node):
                after = languages.derivative(node, low)
                if not languages.is_empty(after):
                    many = count * (high - low + 1)
                    longer[after] = longer.get(after, 0) + many
                    known += many
                if known > most:
                    return True
        level = longer
    return False
