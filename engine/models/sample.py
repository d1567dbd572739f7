"""A text that a model reads when it is loaded, where something about its numbers must be known."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

SAMPLE = Path(__file__).parent / "sample.txt"
"""Prose, talk, programs, tables and several languages: what models are asked for."""
WINDOW = 512
MAX_WINDOWS = 8
CHUNK = 64
GOLDEN = 0.6180339887498949


@torch.inference_mode()
def read_sample(model: Any, directory: Path, attention: str, context: int = 0) -> None:
    """Let a model's decoder read the sample, attending with an attention of transformers; not without tokenizer.json.

    Every window of tokens begins at position 0; with a `context` its chunks of `CHUNK` tokens lie spread over so many
    positions instead, evenly but at no fixed distance, so that angles of every frequency meet all their values.
    """
    if not (directory / "tokenizer.json").exists():
        return
    decoder = model.get_decoder()
    with attending_by(decoder, attention):
        vocab_size = int(model.config.get_text_config().vocab_size)
        longest = int(model.config.get_text_config().max_position_embeddings)
        for number, whole in enumerate(windows(directory / "tokenizer.json", vocab_size)):
            window = whole[:longest]
            where = torch.tensor([positions(len(window), number, context)], device=model.device)
            decoder(input_ids=torch.tensor([window], device=model.device), position_ids=where, use_cache=False)


@contextmanager
def attending_by(decoder: Any, attention: str) -> Iterator[None]:
    """Inside, a decoder attends by an attention of transformers; a tower beside it goes on in its own way."""
    ours = decoder.config._attn_implementation
    decoder.set_attn_implementation(attention)
    try:
        yield
    finally:
        decoder.set_attn_implementation(ours)


def windows(tokenizer: Path, vocab_size: int) -> Iterator[list[int]]:
    """Pieces of the sample, each behind the token that begins a text where the tokenizer has one."""
    encoder = Tokenizer.from_file(str(tokenizer))
    first = encoder.encode("").ids
    ids = encoder.encode(SAMPLE.read_text(encoding="utf-8"), add_special_tokens=False).ids
    ids = [token for token in ids if token < vocab_size]
    for start in range(0, min(len(ids), MAX_WINDOWS * WINDOW), WINDOW):
        yield first + ids[start : start + WINDOW]


def positions(length: int, window: int, context: int) -> list[int]:
    """Those of the tokens of a window, rising and within the context: see `read_sample`."""
    chunks = -(-length // CHUNK)
    if context <= 2 * chunks * CHUNK:
        return list(range(length))
    # Multiples of the golden ratio, modulo 1, fill an interval evenly however many there are.
    starts = sorted((window * chunks + chunk + 1) * GOLDEN % 1 * (context - chunks * CHUNK) for chunk in range(chunks))
    found: list[int] = []
    for start in starts:
        at = max(int(start), found[-1] + 1 if found else 0)
        found += range(at, at + CHUNK)
    return found[:length]
