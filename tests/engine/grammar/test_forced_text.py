"""Text that is forced is made of tokens that say just that, whatever the model's tokenizer does to texts otherwise."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from engine.grammar.vocabulary import Vocabulary
from tests.engine.grammar.walks import Walker

END = "<end>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def composing() -> Tokenizer:
    """It composes characters (NFC), as Qwen2.5's does."""
    tokenizer = Tokenizer(models.BPE(_numbered(sorted(pre_tokenizers.ByteLevel.alphabet())), []))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def marking() -> Tokenizer:
    """A space is a mark to it, and the mark a space, as in Gemma 2's."""
    vocabulary = _numbered([*BYTES, "\u2581", *map(chr, range(33, 127)), "\u2581x", "ab"])
    tokenizer = Tokenizer(models.BPE(vocabulary, [("\u2581", "x"), ("a", "b")], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def prefixing() -> Tokenizer:
    """It begins every text with a space, as Llama 2's does."""
    tokenizer = marking()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return tokenizer


def folding() -> Tokenizer:
    """Capitals are lost to it."""
    tokenizer = composing()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


KINDS: list[Callable[[], Tokenizer]] = [composing, marking, prefixing, folding]
TEXTS = ["e\u0301", "\u212b", "\u212a", "\uf900", "\u2126x", "\u0958", "cafe\u0301 a", "a\u2581b", "\u2581",
         "x \u2581x", "  ab", "\u1e9b\u0323", "\U0002f800", "Ab\u0130", "say <end> now"]  # fmt: skip
INTEGER = {"type": "integer"}


def walker_of(tokenizer: Tokenizer, directory: Path) -> Walker:
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    return Walker(directory, size, size - 1)


def schemas(text: str) -> list[Any]:
    """What leaves no choice but the text: for a value, among others, for a name, and behind what is written freely."""
    members = {"name": {"type": "string", "maxLength": 3}, "n": INTEGER, text: INTEGER}
    return [
        {"const": text},
        {"enum": [f"{text} a", f"{text} b"]},
        {"type": "string", "pattern": f"^[01]{text}$"},
        {"type": "object", "properties": members, "required": list(members), "additionalProperties": False},
        {"type": "object", "properties": {"n": INTEGER, "u": {"const": text}}, "required": ["n", "u"]},
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_what_a_tokenizer_would_change_comes_out_as_it_is(
    kind: Callable[[], Tokenizer], text: str, tmp_path: Path
) -> None:
    walker = walker_of(kind(), tmp_path)
    for schema in schemas(text):
        for seed in range(3):
            written = walker.walk("json_schema", json.dumps(schema), seed, limit=2000)
            assert written is None or text in str(json.loads(written)), (schema, written)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_say_the_bytes_that_they_stand_for(kind: Callable[[], Tokenizer], tmp_path: Path) -> None:
    vocabulary = walker_of(kind(), tmp_path).vocabulary
    for text in [*map(str.encode, TEXTS), "\u00e9".encode()[:1], b"a\xf0\x9f\x98", b"\x98\x80b", b"\xff\xfe", b""]:
        ids = vocabulary.spelled(text)
        assert b"".join(vocabulary.tokens[token_id] for token_id in ids) == text
        assert not vocabulary.special_ids & set(ids)


def test_the_tokenizer_s_own_tokens_are_taken_where_they_serve(tmp_path: Path) -> None:
    vocabulary = walker_of(marking(), tmp_path).vocabulary
    assert [vocabulary.tokens[token_id] for token_id in vocabulary.spelled(b"cab x")] == [b"c", b"ab", b" x"]


def test_a_text_ends_at_a_byte_that_nothing_spells() -> None:
    assert Vocabulary([b"a", b"ab"], special_ids=[], eos_token_ids=[]).spelled(b"abac") == [1, 0]


SHARED = Path(__file__).parents[4] / "shared/tokenizers"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/tokenizers")
@pytest.mark.parametrize(("name", "eos"), [("qwen2_5", "<|im_end|>"), ("gemma2", "<eos>"), ("llama3_1", "<|eot_id|>")])
def test_with_the_tokenizers_of_real_models(name: str, eos: str) -> None:
    found = json.loads((SHARED / name / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in found["added_tokens"]}
    walker = Walker(SHARED / name, max([*added.values(), *found["model"]["vocab"].values()]) + 1, added[eos])
    for text in TEXTS:
        for schema in schemas(text)[::3]:
            written = walker.walk("json_schema", json.dumps(schema), 0, limit=2000)
            assert written is None or text in str(json.loads(written)), (schema, written)
