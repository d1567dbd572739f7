"""A tokenizer for models without one: text goes in byte by byte, and every id of the vocabulary comes out as text."""

import json
from pathlib import Path
from typing import Any

from engine.weights.random_sight import RandomSight
from engine.weights.seeing import PROCESSING_FILES

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SEEING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(
    directory: Path, vocab_size: int, eos_token_id: int | None, sight: RandomSight | None = None
) -> None:
    """Write tokenizer.json and tokenizer_config.json for `vocab_size` ids; of a model that sees what images need too.

    `<|im_end|>` gets the end token's id. A vocabulary too small for all bytes leaves out the rarest; text with such
    bytes loses them.
    """
    end = eos_token_id if eos_token_id is not None and eos_token_id < vocab_size else vocab_size - 1
    start = vocab_size - 1 if end != vocab_size - 1 else max(0, vocab_size - 2)
    special = {start: "<|im_start|>", end: "<|im_end|>"}
    if sight is not None:
        special |= sight.marks
        free = (number for number in reversed(range(vocab_size)) if number not in special)
        special |= dict(zip(list(free)[: len(sight.others)], sight.others, strict=True))
    letters = iter(_byte_letters())
    words = (f"\u0120{number:x}" for number in range(vocab_size))
    vocab = {}
    for index in range(max(vocab_size, *(number + 1 for number in special))):
        token = special.get(index) or next(letters, None) or next(words)
        vocab[token] = index
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "fuse_unk": False,
        "vocab": vocab,
        "merges": [],
    }
    tokenizer = {
        "version": "1.0",
        "added_tokens": [_special(index, token) for index, token in sorted(special.items())],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": _TEMPLATE if sight is None else _SEEING_TEMPLATE.replace("IMAGE", sight.shown),
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if sight is not None:
        write_processing(directory, sight)


def write_processing(directory: Path, sight: RandomSight) -> None:
    """Write how images are cut."""
    (directory / PROCESSING_FILES[0]).write_text(json.dumps(dict(sight.processing)), encoding="utf-8")


def _special(index: int, token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": token, "special": True, **flags}


def _byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes in a byte-level vocabulary: printable ones for themselves first."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    letters = {byte: chr(byte) for byte in own} | {byte: chr(256 + rank) for rank, byte in enumerate(others)}
    # ASCII first, space and newline among it, so that small vocabularies can still spell a prompt.
    return [letters[byte] for byte in sorted(letters, key=lambda byte: (byte >= 0x80, byte < 0x20 and byte != 10))]
