"""Which program of the attention kernel attends with which queries to which keys, found on the device once a step.

Rows differ in length by a factor of thousands, and a program for each would leave the GPU waiting for the longest. So
tiles of queries are cut into pieces of about the same number of keys, as many as keep all processors busy
(FlashInfer's plan and stream-K do likewise: Ye et al., "FlashInfer", 2025; Osama et al., "Stream-K", 2023). A tile of
less than one and a half pieces stays whole; what others come to is joined by a second kernel. Lengths are read from
device memory and grids depend on shapes alone, so that a captured graph stays right whatever the lengths become.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engine.kernels.launch_shapes import LaunchShape, launch_key, launch_shape
from engine.kernels.launches import launch
from engine.kernels.triton_dependent import await_previous

PROGRAMS, FEW_PROGRAMS = 4, 2
"""Pieces for each processor: of rows that decode, whose programs are small, and of prompts and latents."""
SMALLEST_PIECE, SMALLEST_PROMPT_PIECE = 128, 512
"""Keys. What a smaller one would gain is lost in joining."""
FULL = 2
"""So many tiles of one prompt for each processor need not be cut: its longest is not much longer than the others."""
BLOCK = 256
"""Tiles that are looked at together."""
PIECE = 8
"""Numbers of a piece: sequence, first token, queries, place of the first in its text, first key, end of keys, and the
slot for what it comes to, -1 where that is the result. Queries are 0 in a piece that is not there."""
JOIN = 4
"""Numbers of a tile that was cut: first token, queries, first slot, pieces. Pieces are 0 in one that is not there."""
STEPS = ("num_seqs", "rounds", "num_tiles", "wanted", "smallest", "num_pieces", "num_joins", "window")
LISTS = ("lens", "starts")
"""What differs from step to step: numbers, and parts of lists, which begin anywhere. Triton would build a kernel for
each kind of them, while requests wait."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the queries of a launch are dealt out to programs, before their keys are."""

    shape: LaunchShape
    heads: int
    """Of a group, that a program takes."""
    parts: int
    """Programs that the heads of a tile are dealt out to."""
    tokens: int
    """Of a tile."""
    one_query: bool
    """Whether sequence i has token i and no other. A GPU has kernels for this and for prompts of any length."""
    num_tiles: int
    """At most."""
    num_pieces: int
    """That are aimed at; 0 where no tile is cut."""
    smallest: int
    """Keys of a piece."""

    @property
    def most_joins(self) -> int:
        """Tiles that can be cut at most: each takes more than a piece of what all pieces have."""
        return min(self.num_tiles, self.num_pieces)

    @property
    def most_pieces(self) -> int:
        """A tile adds half a piece to what is aimed at, or is one piece however little it has."""
        return self.num_tiles + self.num_pieces

    @property
    def most_slots(self) -> int:
        """Pieces of tiles that are cut."""
        return self.num_pieces + self.most_joins


@dataclass(frozen=True, slots=True)
class Pieces:
    """A launch as the device has dealt it out."""

    layout: Layout
    pieces: torch.Tensor
    """int32 [most_pieces, PIECE], the last tiles first: of a prompt these have the most keys."""
    joins: torch.Tensor
    """int32 [most_joins, JOIN]"""


def lay_out(
    dim: int, group: int, kv_heads: int, *, is_latent: bool, kv_bytes: int, num_tokens: int, num_seqs: int,
    max_query_len: int, num_processors: int,
) -> Layout:  # fmt: skip
    """The layout for heads `dim` wide, of which `group` share one of `kv_heads`; `kv_bytes` a number in the cache."""
    one_query = max_query_len == 1 and num_tokens == num_seqs
    shape = launch_shape(launch_key(dim, group, is_prompt=not one_query, is_latent=is_latent, kv_bytes=kv_bytes))
    heads = min(group, shape.rows)
    parts = kv_heads * -(-group // heads)
    tokens = 1 if one_query else shape.rows // heads
    programs = PROGRAMS if one_query and not is_latent else FEW_PROGRAMS
    is_full = num_seqs == 1 and num_tokens // tokens * parts >= FULL * num_processors
    return Layout(
        shape, heads, parts, tokens, one_query,
        num_tiles=num_seqs if one_query else num_tokens // tokens + num_seqs,
        num_pieces=0 if is_full else max(1, programs * num_processors // parts),
        smallest=SMALLEST_PIECE if one_query else SMALLEST_PROMPT_PIECE,
    )  # fmt: skip


@triton.jit
def _tiles(
    tile, lens, starts, num_seqs, rounds, num_tiles, window, TOKENS: tl.constexpr, TILE: tl.constexpr,
    ONE_QUERY: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Of tiles: sequence, first token, queries, place of the first, first key, end of keys. Some have no queries.

    Those of sequence s begin at tile `starts[s] // TOKENS + s`, so that each has room for its tiles.
    """
    is_tile = (tile >= 0) & (tile < num_tiles)
    if ONE_QUERY:
        sequence, token, place = tile, tile, tl.load(lens + tile, mask=is_tile, other=0) - 1
        queries = is_tile.to(tl.int32)
    else:
        low = tl.full(tile.shape, 1, tl.int32)
        high = tl.full(tile.shape, 0, tl.int32) + num_seqs
        for _ in range(rounds):
            middle = (low + high) // 2
            is_open = low < high
            is_before = tl.load(starts + middle, mask=is_open, other=0) // TOKENS + middle <= tile
            low = tl.where(is_open & is_before, middle + 1, low)
            high = tl.where(is_open & (is_before == 0), middle, high)
        sequence = low - 1
        start = tl.load(starts + sequence)
        query_len = tl.load(starts + sequence + 1) - start
        first = (tile - (start // TOKENS + sequence)) * TOKENS
        # Below zero before a first sequence without queries.
        queries = tl.where(is_tile & (first >= 0), tl.minimum(tl.maximum(query_len - first, 0), TOKENS), 0)
        token = start + first
        place = tl.load(lens + sequence) - query_len + first
    end = place + queries
    key = tl.full(tile.shape, 0, tl.int32)
    if WINDOW:
        key = tl.maximum(place - window + 1, 0) // TILE * TILE
    return sequence, token, queries, place, key, tl.where(queries > 0, end, key)


@triton.jit(do_not_specialize=STEPS, do_not_specialize_on_alignment=LISTS)
def cut_kernel(
    lens, starts, pieces, joins, num_seqs, rounds, num_tiles, wanted, smallest, num_pieces, num_joins, window,
    TOKENS: tl.constexpr, TILE: tl.constexpr, ONE_QUERY: tl.constexpr, WINDOW: tl.constexpr, BLOCK: tl.constexpr,
    PIECE: tl.constexpr, JOIN: tl.constexpr, DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (1). See `cut`. Keys are counted in tiles of TILE of them; `smallest` is, too."""
    await_previous(DEPENDENT)
    lane = tl.arange(0, BLOCK)
    total = 0
    for base in range(0, num_tiles, BLOCK):
        _, _, _, _, key, end = _tiles(
            num_tiles - 1 - base - lane, lens, starts, num_seqs, rounds, num_tiles, window, TOKENS, TILE, ONE_QUERY,
            WINDOW,
        )  # fmt: skip
        total += tl.sum(tl.cdiv(end - key, TILE), 0)
    piece = tl.maximum(tl.cdiv(total, tl.maximum(wanted, 1)), smallest)
    before, slots, cuts = 0, 0, 0
    for base in range(0, num_tiles, BLOCK):
        sequence, token, queries, place, key, end = _tiles(
            num_tiles - 1 - base - lane, lens, starts, num_seqs, rounds, num_tiles, window, TOKENS, TILE, ONE_QUERY,
            WINDOW,
        )  # fmt: skip
        keys = tl.cdiv(end - key, TILE)
        number = tl.maximum(tl.where(wanted > 0, (keys + piece // 2) // piece, 1), 1)
        each = tl.maximum(tl.cdiv(keys, number), 1)
        number = tl.where(queries > 0, tl.maximum(tl.cdiv(keys, each), 1), 0)
        is_cut = number > 1
        cut = tl.where(is_cut, number, 0)
        at = before + tl.cumsum(number, 0) - number
        slot = slots + tl.cumsum(cut, 0) - cut
        place_of_join = cuts + tl.cumsum(is_cut.to(tl.int32), 0) - 1
        join = joins + place_of_join * JOIN
        tl.store(join, token, mask=is_cut)
        tl.store(join + 1, queries, mask=is_cut)
        tl.store(join + 2, slot, mask=is_cut)
        tl.store(join + 3, number, mask=is_cut)
        for part in range(0, tl.max(number, 0)):
            own = pieces + (at + part) * PIECE
            is_part = part < number
            low = key + part * each * TILE
            tl.store(own, sequence, mask=is_part)
            tl.store(own + 1, token, mask=is_part)
            tl.store(own + 2, queries, mask=is_part)
            tl.store(own + 3, place, mask=is_part)
            tl.store(own + 4, low, mask=is_part)
            tl.store(own + 5, tl.minimum(low + each * TILE, end), mask=is_part)
            tl.store(own + 6, tl.where(is_cut, slot + part, -1), mask=is_part)
        before += tl.sum(number, 0)
        slots += tl.sum(cut, 0)
        cuts += tl.sum(is_cut.to(tl.int32), 0)
    for base in range(before, num_pieces, BLOCK):
        tl.store(pieces + (base + lane) * PIECE + 2, 0, mask=base + lane < num_pieces)
    for base in range(cuts, num_joins, BLOCK):
        tl.store(joins + (base + lane) * JOIN + 3, 0, mask=base + lane < num_joins)


def cut_constants(layout: Layout, has_window: bool) -> dict[str, object]:
    """What the kernel that cuts is built for."""
    return {
        "TOKENS": layout.tokens, "TILE": layout.shape.tile, "ONE_QUERY": layout.one_query, "WINDOW": has_window,
        "BLOCK": BLOCK, "PIECE": PIECE, "JOIN": JOIN,
    }  # fmt: skip


def cut(lens: torch.Tensor, starts: torch.Tensor, layout: Layout, *, window: int | None = None) -> Pieces:
    """Deal out S sequences of contexts lens int32 `[S]`, whose queries begin at starts int32 `[S + 1]`.

    A sequence without queries has no piece, one without keys a piece without any.
    """
    pieces = torch.empty(layout.most_pieces, PIECE, dtype=torch.int32, device=lens.device)
    joins = torch.empty(layout.most_joins, JOIN, dtype=torch.int32, device=lens.device)
    num_seqs, tile = lens.shape[0], layout.shape.tile
    launch(
        cut_kernel, (1,),
        lens, starts, pieces, joins, num_seqs, num_seqs.bit_length(), layout.num_tiles, layout.num_pieces,
        max(1, layout.smallest // tile), layout.most_pieces, layout.most_joins, window or 0,
        **cut_constants(layout, window is not None), num_warps=4,
    )  # fmt: skip
    return Pieces(layout, pieces, joins)
