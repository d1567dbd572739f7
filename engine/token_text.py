"""The exact bytes behind each token id, read off a tokenizer's decoder.

Text is the UTF-8 decoding of the tokens' bytes laid end to end, bad sequences replaced by U+FFFD. That holds for both
families of chat tokenizers, byte-level BPE and SentencePiece with byte fallback, and it streams: a byte needs to wait
for the rest of its character and for nothing else. (The tokenizers library gives up a whole run of fallback bytes if
one of them is bad; here the good characters of such a run survive.)
"""

import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

from engine.errors import ModelLoadError

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable Latin-1 stands for itself, all else for U+0100 and up.

    GPT-2's mapping (Radford et al. 2019), which every byte-level vocabulary since has kept.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_level_alphabet()


class TokenText:
    """Bytes of tokens. Thread-safe: the cache only ever gains equal values."""

    def __init__(self, tokenizer: Tokenizer, decoder: dict[str, Any] | None) -> None:
        """`decoder` is the section of tokenizer.json. Raises `ModelLoadError` for a kind that is not known here."""
        self.leading_spaces = 0
        """How many spaces at the very start of a text are the tokenizer's own and are not shown."""
        self._tokenizer = tokenizer
        self._byte_level = False
        self._byte_fallback = False
        self._replacements: list[tuple[str, str]] = []
        self._cache: dict[int, bytes] = {}
        for step in _steps(decoder):
            self._read_step(step)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; none for an id the tokenizer does not know."""
        known = self._cache.get(token_id)
        if known is None:
            known = self._cache[token_id] = self._compute(token_id)
        return known

    def join(self, token_ids: Iterable[int]) -> bytes:
        """The bytes of tokens laid end to end."""
        return b"".join(map(self.token_bytes, token_ids))

    def _compute(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if token is None:
            return b""
        if self._byte_level:
            try:
                return bytes([_BYTES[char] for char in token])
            except KeyError:
                return token.encode()  # an added token outside the byte alphabet is plain text
        if self._byte_fallback and (match := _FALLBACK.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode()

    def _read_step(self, step: dict[str, Any]) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._byte_level = True
            case {"type": "ByteFallback"}:
                self._byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                self._replacements.append((old, new))
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                self.leading_spaces = start
            case {"type": "Metaspace", "replacement": str(old)}:
                self._replacements.append((old, " "))
                self.leading_spaces = 0 if step.get("prepend_scheme") == "never" else 1
            case _:
                raise ModelLoadError(
                    f"tokenizer.json has a decoder that is not supported: {step.get('type')}",
                    hint="byte-level BPE and SentencePiece tokenizers are supported",
                )


def _steps(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        raise ModelLoadError(
            "tokenizer.json has no decoder", hint="byte-level BPE and SentencePiece tokenizers are supported"
        )
    if decoder.get("type") == "Sequence":
        return [step for child in decoder["decoders"] for step in _steps(child)]
    return [decoder]
