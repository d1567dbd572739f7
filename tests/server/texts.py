"""Where the shared tokenizers lie, and a tiny SentencePiece-like one made from nothing."""

from functools import cache

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from server.prompt.model_files import ChatFiles, read_chat_files
from tests.places import SHARED

SHARED_TOKENIZERS = ("llama3_1", "qwen2_5", "gemma2", "deepseek_v3")

needs_shared = pytest.mark.skipif(
    not (SHARED / "tokenizers").is_dir(), reason="needs ../shared/tokenizers and ../shared/chat-templates"
)
needs_spec = pytest.mark.skipif(not (SHARED / "spec").is_dir(), reason="needs ../shared/spec")


@cache
def shared_tokenizer_files(name: str) -> tuple[Tokenizer, ChatFiles]:
    """One of ../shared/tokenizers, read once."""
    directory = SHARED / "tokenizers" / name
    return Tokenizer.from_file(str(directory / "tokenizer.json")), read_chat_files(directory)


def tiny_sentencepiece() -> Tokenizer:
    """Llama 2's kind: a space put before the text and taken off again, bytes for unknown characters."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh<>|_\n", "▁a", "ab"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[("▁", "a"), ("a", "b")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in ("<s>", "</s>")])
    return tokenizer
