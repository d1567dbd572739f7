"""Regular expressions that are to match whole texts, in forms that the libraries take: no anchors, no lookaround."""

from collections.abc import Iterable

from engine.errors import RequestError
from engine.grammar.anchors import without_anchors
from engine.grammar.language.ecma import translated
from engine.grammar.language.expression import LanguageError, Languages
from engine.grammar.language.items import asserts, looks_around
from engine.grammar.language.patterns import Reader
from engine.grammar.language.writing import in_slashes, write, written_parts


def whole_parts(regex: str, param: str, *, most: int | None = None) -> list[str]:
    """Expressions, at most so many, that match whole only what `regex` matches whole, all of them.

    Raises `RequestError` that names `param` where it has assertions and is too complex, or matches nothing.
    """
    try:
        bare = without_anchors(translated(regex))
    except LanguageError as error:
        raise RequestError(f"{param}: {regex[:100]!r} cannot be followed: {error}", param=param) from None
    if not _asserts(bare, param):
        return [bare]
    languages = Languages()
    try:
        texts = Reader(languages).read(regex, whole=True)
        if languages.is_empty(texts):
            raise RequestError(f"{param}: {regex[:100]!r} matches no text at all", param=param)
        parts = [write(languages.automaton(texts))] if most == 1 else written_parts(languages, texts)
    except LanguageError as error:
        raise RequestError(f"{param}: {regex[:100]!r} cannot be followed: {error}", param=param) from None
    return list(map(without_anchors, parts))


def lark_terminal(parts: Iterable[str]) -> str:
    """The texts that all of these expressions match whole, as a terminal in Lark's notation."""
    return " & ".join(in_slashes(f"(?:{part})") for part in parts)


def _asserts(regex: str, param: str) -> bool:
    """Whether it has to be said in other words; what else cannot be read here is the library's to refuse or to take."""
    try:
        looks = looks_around(regex)
    except LanguageError as error:
        raise RequestError(f"{param}: {regex[:100]!r} cannot be followed: {error}", param=param) from None
    try:
        return looks or asserts(regex)
    except LanguageError:
        return False
