"""The tokens of a vocabulary by what they may do to a JSON text: complete names and items, begin them, close what holds
them."""

import re
from collections.abc import Iterable

import numpy as np

from engine.grammar.json_place import DELIMITERS, Place, Repeated
from engine.grammar.vocabulary import Vocabulary
from engine.grammar.writing.document import DIFFERS

FEW = 16
_DELIMITER = f"[{re.escape(bytes(DELIMITERS).decode())}]"
_ENDS_ITEM = rf'[\]}}]|".*"|[0-9el]{_DELIMITER}'
_KINDS = {
    "letters": r"\A.\Z",
    "quoted": '"',
    "comma": ",",
    "comma and quote": '^(?=.*,).*"',
    "two quotes": '".*"',
    "comma and two quotes": '^(?=.*,).*".*"',
    "structure": r"[,:\[\]{}]",
    "items": _ENDS_ITEM,
    "items behind a text": f'".*(?:{_ENDS_ITEM})',
    "comma behind a text": '".*,',
    "comma and quote behind a text": '".*,.*"',
    "next": r",\s*\S",
    "next behind a text": r'".*,\s*\S',
    "marks": DIFFERS,
}
"""Name → what is found in the tokens of that kind. Items are what such tokens may complete: a container that closes, a
string, or a number or word that something follows; what is next begins behind a comma."""
_OF_A_KIND = re.compile(rb'[",:\[\]{}\x01]|[0-9el]\s')
"""Found in all longer tokens of some kind, and in few others."""
_CLOSING = re.compile(rb"[\\\]}]")
_NUMERIC = re.compile(rb" ?([-+.0-9eE]+)")


class TokenSet:
    """Some tokens, by where they stand in bitmasks."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids = np.array(list(ids), dtype=np.int64)
        self._words = self._ids >> 5
        self._bits = np.left_shift(np.uint32(1), (self._ids & 31).astype(np.uint32))

    def allowed(self, row: np.ndarray) -> list[int]:
        """Those of them that a bitmask allows."""
        found: list[int] = self._ids[(row.view(np.uint32)[self._words] & self._bits) != 0].tolist()
        return found


class TokenIndex:
    """Tokens of a vocabulary by text, by kind, by digits and by how they begin."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.ids: dict[bytes, list[int]] = {}
        self.by_digits: dict[bytes, list[int]] = {}
        """Tokens that are part of a number, with a space before it maybe, by the digits of its mantissa's part."""
        self.quoted: dict[int, bytes] = {}
        """Of tokens with two quotes and nothing that closes or is escaped: what stands between them, and the second."""
        self._ending: dict[bytes, list[int]] = {}
        """Tokens with a quote, by what stands up to it."""
        self._masks: dict[bytes, np.ndarray] = {}
        found: dict[str, list[int]] = {name: [] for name in _KINDS}
        patterns = {name: re.compile(pattern.encode(), re.DOTALL) for name, pattern in _KINDS.items()}
        delimiting: list[int] = []
        repeating: list[int] = []
        for token_id, text in enumerate(vocabulary.tokens):
            if not text or token_id in vocabulary.special_ids:
                continue
            self.ids.setdefault(text, []).append(token_id)
            if len(text) == 1 or _OF_A_KIND.search(text):
                for name, pattern in patterns.items():
                    if pattern.search(text):
                        found[name].append(token_id)
            if text.count(b'"') == 2 and not _CLOSING.search(text):
                self.quoted[token_id] = text.split(b'"')[1] + b'"'
            if b'"' in text:
                self._ending.setdefault(text[: text.index(b'"') + 1], []).append(token_id)
            if part := _NUMERIC.fullmatch(text):
                self.by_digits.setdefault(digits(part[1]), []).append(token_id)
            if text[0] in DELIMITERS:
                delimiting.append(token_id)
            if b"[" in text and isinstance(Place(may_differ=True).read(text), Repeated):
                repeating.append(token_id)
        self.kinds = {name: TokenSet(ids) for name, ids in (*found.items(), ("repeating", repeating))}
        """The tokens of each kind of `_KINDS`, and those that open an array and have an item twice in it."""
        self._delimiting = delimiting

    @property
    def has_mark(self) -> bool:
        """Whether grammars can be asked whether items have to differ."""
        return DIFFERS.encode() in self.ids

    def spelled(self, text: bytes) -> list[int] | None:
        """Tokens of one byte each that spell a text; None if there are none for some byte."""
        ids = [self.ids.get(text[at : at + 1]) for at in range(len(text))]
        return [some[0] for some in ids if some] if all(ids) else None

    def ending(self, rest: bytes) -> list[int]:
        """Tokens that begin with the rest of a text in quotes, with its closing one."""
        tokens = self.vocabulary.tokens
        ids = self._ending.get(rest[: rest.index(b'"') + 1], [])
        return ids if rest == b'"' else [token_id for token_id in ids if tokens[token_id].startswith(rest)]

    def forbid(self, row: np.ndarray, rest: bytes) -> bool:
        """Take tokens that begin with the rest of a text, with its quote, out of a bitmask; whether there are any."""
        ids = self.ending(rest)
        if len(ids) > FEW and rest == b'"':
            self._forbid_all(row, rest, ids)
        else:
            for token_id in ids:
                clear(row, token_id)
        return bool(ids)

    def forbid_delimiters(self, row: np.ndarray) -> None:
        """Take all that ends a number out of a bitmask."""
        self._forbid_all(row, b",", self._delimiting)

    def _forbid_all(self, row: np.ndarray, name: bytes, ids: list[int]) -> None:
        if name not in self._masks:
            bits = np.ones(len(row) * 32, dtype=np.uint8)
            bits[ids] = 0
            self._masks[name] = np.packbits(bits, bitorder="little").view(np.int32)
        row &= self._masks[name]

    def begun(self, texts: Iterable[bytes]) -> list[int]:
        """Tokens that are the beginnings of some texts."""
        begun = dict.fromkeys(text[:end] for text in texts for end in range(1, len(text) + 1))
        return [token_id for text in begun for token_id in self.ids.get(text, ())]


def digits(number: bytes) -> bytes:
    """The digits of what is written of a number, up to its exponent."""
    return re.sub(rb"[-+.]|[eE].*", b"", number)


def clear(row: np.ndarray, token_id: int) -> None:
    """Take one token out of a bitmask."""
    row.view(np.uint32)[token_id // 32] &= np.uint32(~(1 << (token_id % 32)) & 0xFFFFFFFF)
