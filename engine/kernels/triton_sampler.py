"""From logits to tokens on a GPU, without ever asking the host.

A step reads its logits once if all rows are greedy, and 4 bytes a logit a few times more if some are not: to adjust
them, to find what `top_k` and `top_p` keep (`engine.kernels.triton_filter`), and to draw.

A draw is a race: each token's score gets noise of the Gumbel distribution, and the highest wins, with the probabilities
of softmax (Gumbel, 1954; see Maddison, Tarlow and Minka, "A* Sampling", 2014). The noise is a function of the row's key
and the token, so it is the same however rows and tiles are spread over the GPU.
"""

import torch
import triton
import triton.language as tl

from engine.kernels.launches import launch, power_of_2, tiles_of

TILE = 1024
"""Logits of a program."""
COLUMNS = ("slots", "repetition", "frequency", "presence", "mask_rows", "temperatures", "top_ks", "top_ps", "min_ps",
           "keys")  # fmt: skip
"""A number for each row. They come together in one copy and begin anywhere in it, which is not worth kernels of its
own (see `engine.kernels.triton_attention.LISTS`)."""


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def adjust_kernel(
    logits, out, counts, in_prompt, slots, repetition, frequency, presence, mask_rows, words, vocab, num_words,
    PENALTIES: tl.constexpr, MASK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (rows, tiles). See `adjust`."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * TILE + tl.arange(0, TILE)
    real = token < vocab
    x = tl.load(logits + row * vocab + token, mask=real, other=0.0).to(tl.float32)
    if PENALTIES:
        slot = tl.load(slots + row)
        count = tl.load(counts + slot * vocab + token, mask=real, other=0).to(tl.float32)
        known = (tl.load(in_prompt + slot * vocab + token, mask=real, other=0) != 0) | (count > 0.0)
        divisor = tl.where(known, tl.load(repetition + row), 1.0)
        x = tl.where(x > 0.0, x / divisor, x * divisor)
        x -= tl.load(frequency + row) * count + tl.where(count > 0.0, tl.load(presence + row), 0.0)
    if MASK:
        mask_row = tl.load(mask_rows + row)
        word = tl.load(words + mask_row * num_words + token // 32, mask=real & (mask_row >= 0), other=-1)
        x = tl.where(((word >> (token % 32)) & 1) != 0, x, float("-inf"))
    tl.store(out + row * vocab + token, x, mask=real)


@triton.jit
def _gumbel(key, token):
    """Noise of the Gumbel distribution for tokens, a function of key (uint64) and token."""
    mixed = key + (token.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB
    mixed = mixed ^ (mixed >> 31)
    # Uniform in [0, 1], and fine where it is small: there a token wins that is unlikely to.
    u = mixed.to(tl.float32) * 5.421010862427522e-20
    near = u * (1.0 + u * (0.5 + u * (0.3333333333 + u * 0.25)))
    waiting = tl.where(u < 0.01, near, -tl.log(tl.maximum(1.0 - u, 1e-37)))
    return -tl.log(tl.maximum(waiting, 1e-37))


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def race_kernel(
    x, temperatures, keys, bests, thresholds, scores, tokens, broken, vocab, num_tiles,
    HOT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (rows, tiles). The winner of each tile. See `race`."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    token = tile * TILE + tl.arange(0, TILE)
    value = tl.load(x + row * vocab + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    wrong = ((value != value) | (value == float("inf"))).to(tl.int32)
    score = value
    if HOT:
        temperature = tl.load(temperatures + row)
        if temperature > 0.0:
            key = tl.load(keys + row).to(tl.uint64, bitcast=True)
            noisy = (value - tl.load(bests + row)) / temperature + _gumbel(key, token)
            score = tl.where(value >= tl.load(thresholds + row), noisy, float("-inf"))
    # A NaN is not above nor below anything, and beside one a token that does not exist could win: the next step, which
    # may be launched before the host has seen this row, would then read beyond the embeddings.
    score = tl.where(score == score, score, float("-inf"))
    highest, winner = tl.max(score, 0, return_indices=True)
    at = row * num_tiles + tile
    tl.store(scores + at, highest)
    tl.store(tokens + at, tile * TILE + winner)
    tl.store(broken + at, tl.max(wrong, 0))


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def choose_kernel(scores, tokens, broken, slots, token_ids, last_tokens, packed, num_tiles, TILES_PAD: tl.constexpr):
    """Grid (rows). The winner of each row, to wherever it is wanted."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES_PAD)
    at = row * num_tiles + tile
    score = tl.load(scores + at, mask=tile < num_tiles, other=float("-inf"))
    wrong = tl.max(tl.load(broken + at, mask=tile < num_tiles, other=0), 0)
    highest, winner = tl.max(score, 0, return_indices=True)
    token = tl.load(tokens + row * num_tiles + winner)
    tl.store(token_ids + row, token.to(tl.int64))
    tl.store(last_tokens + tl.load(slots + row), token.to(tl.int64))
    tl.store(packed + 2 * row, token)
    tl.store(packed + 2 * row + 1, ((wrong == 0) & (highest > float("-inf"))).to(tl.int32))


def adjust(
    logits: torch.Tensor,
    slots: torch.Tensor,
    *,
    penalties: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    counts: torch.Tensor | None = None,
    in_prompt: torch.Tensor | None = None,
    mask_rows: torch.Tensor | None = None,
    words: torch.Tensor | None = None,
) -> torch.Tensor:
    """fp32 `[R, V]`: logits `[R, V]` less their penalties, and minus infinity where a bitmask forbids a token.

    `penalties` are repetition, frequency and presence, fp32 `[R]` each; with them go `counts` int32 and `in_prompt`
    bool `[slots, V]`. Row r is held to row `mask_rows[r]`, int64 `[R]`, of `words` int32 `[*, ceil(V/32)]`, or if that
    is -1 to nothing.
    """
    rows, vocab = logits.shape
    out = torch.empty(rows, vocab, dtype=torch.float32, device=logits.device)
    repetition, frequency, presence = penalties or (out, out, out)
    launch(
        adjust_kernel, (rows, tiles_of(vocab, TILE)),
        logits, out, slots if counts is None else counts, slots if in_prompt is None else in_prompt, slots,
        repetition, frequency, presence, slots if mask_rows is None else mask_rows, slots if words is None else words,
        vocab, 0 if words is None else words.shape[1],
        PENALTIES=penalties is not None, MASK=words is not None, TILE=TILE, num_warps=4,
    )  # fmt: skip
    return out


def race(
    x: torch.Tensor,
    slots: torch.Tensor,
    last_tokens: torch.Tensor,
    *,
    hot: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The token of each row of x `[R, V]`: int64 `[R]`, and int32 `[R, 2]` of them and whether all was finite.

    `hot` is temperatures fp32, keys int64, bests fp32 and thresholds fp32, `[R]` each; rows with a temperature of 0, or
    all without `hot`, take the largest. The tokens go to `last_tokens` int64 as well, at `slots` int64 `[R]`.
    """
    rows, vocab = x.shape
    tiles = tiles_of(vocab, TILE)
    scores = torch.empty(rows, tiles, dtype=torch.float32, device=x.device)
    tokens, broken = (torch.empty(rows, tiles, dtype=torch.int32, device=x.device) for _ in range(2))
    token_ids = torch.empty(rows, dtype=torch.int64, device=x.device)
    packed = torch.empty(rows, 2, dtype=torch.int32, device=x.device)
    temperatures, keys, bests, bounds = hot or (scores, slots, scores, scores)
    launch(
        race_kernel, (rows, tiles), x, temperatures, keys, bests, bounds, scores, tokens, broken, vocab, tiles,
        HOT=hot is not None, TILE=TILE, num_warps=4,
    )  # fmt: skip
    launch(
        choose_kernel, (rows,), scores, tokens, broken, slots, token_ids, last_tokens, packed, tiles,
        TILES_PAD=power_of_2(tiles), num_warps=1,
    )  # fmt: skip
    return token_ids, packed
