"""How attention is dealt out to programs (`engine.kernels.triton_pieces`): everything once, and nobody too much."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from engine.kernels.launch_shapes import LaunchShape
from engine.kernels.triton_pieces import Layout, cut, lay_out
from tests.engine.kernels.devices import there

ROUNDS = 30


def dealt(rows: list[tuple[int, int]], layout: Layout, window: int | None) -> list[list[int]]:
    """The pieces of (queries, context) rows, once each has been found to have its keys, and joins to have theirs."""
    starts = torch.tensor([0, *(queries for queries, _ in rows)]).cumsum(0).to(torch.int32)
    lens = torch.tensor([context for _, context in rows], dtype=torch.int32)
    found = cut(*there(lens, starts), layout, window=window)
    pieces = [piece for piece in found.pieces.tolist() if piece[2]]
    by_tile = defaultdict(list)
    for piece in pieces:
        by_tile[piece[1]].append(piece)
    joins = {first: (queries, slot, number) for first, queries, slot, number in found.joins.tolist() if number}
    taken: list[int] = []
    for sequence, (queries, context) in enumerate(rows):
        for first in range(0, queries, layout.tokens):
            token, place = int(starts[sequence]) + first, context - queries + first
            own = by_tile.pop(token)
            count = min(layout.tokens, queries - first)
            assert all(piece[:4] == [sequence, token, count, place] for piece in own), (own, rows)
            begin = 0 if window is None else max(place - window + 1, 0) // layout.shape.tile * layout.shape.tile
            edges = [piece[4] for piece in own] + [own[-1][5]]
            assert edges[0] == begin and edges[-1] == max(place + count, begin), (own, rows)
            assert all(piece[5] == edge for piece, edge in zip(own, edges[1:], strict=True)), own
            if len(own) == 1:
                assert own[0][6] == -1
            else:
                assert sorted(edges) == edges and len(set(edges)) == len(edges), "a piece of a tile has keys"
                assert joins.pop(token) == (count, own[0][6], len(own))
                assert [piece[6] for piece in own] == list(range(own[0][6], own[0][6] + len(own)))
                taken += [piece[6] for piece in own]
    assert not by_tile and not joins
    assert len(set(taken)) == len(taken) and max(taken, default=-1) < layout.most_slots
    return pieces


def anything(seed: int) -> None:
    """Rows, layouts and windows of all kinds; contexts from nothing to very long."""
    chance = random.Random(seed)
    one_query = chance.random() < 0.4
    number = chance.choice((1, 2, 5, 40, 300))
    rows = []
    for _ in range(number):
        queries = 1 if one_query else chance.choice((0, 1, 1, 3, 16, 17, 70))
        context = queries + chance.choice((0, chance.randrange(100), chance.randrange(100_000)))
        rows.append((queries, context))
    num_tokens = sum(queries for queries, _ in rows)
    tokens, tile = 1 if one_query else chance.choice((1, 4, 16)), chance.choice((32, 64))
    layout = Layout(
        LaunchShape(16, tile, 4, 3), 4, 2, tokens, one_query,
        num_tiles=number if one_query else num_tokens // tokens + number,
        num_pieces=chance.choice((0, 1, 7, 66)), smallest=chance.choice((tile, 128, 512)),
    )  # fmt: skip
    window = chance.choice((None, 1, 100, 5000))
    pieces = dealt(rows, layout, window)
    keys = [-(-(high - low) // tile) for _, _, _, _, low, high, *_ in pieces]
    if layout.num_pieces:
        fair = max(-(-sum(keys) // layout.num_pieces), max(1, layout.smallest // tile))
        assert max(keys, default=0) <= fair + fair // 2, "nobody has more than one and a half pieces"


def long_rows(rows: list[tuple[int, int]], group: int = 4, kv_bytes: int = 2, latent: bool = False) -> None:
    """No program of an H100's has more than twice its share, whatever a single row has."""
    num_tokens, longest = sum(queries for queries, _ in rows), max(queries for queries, _ in rows)
    layout = lay_out(
        576 if latent else 128, group, 1 if latent else 8, is_latent=latent, kv_bytes=kv_bytes, num_tokens=num_tokens,
        num_seqs=len(rows), max_query_len=longest, num_processors=132,
    )  # fmt: skip
    keys = [high - low for _, _, _, _, low, high, *_ in dealt(rows, layout, None)]
    assert max(keys) <= 2 * max(sum(keys) / layout.num_pieces, layout.smallest)


def piece_cases() -> Iterator[tuple[str, Callable[..., None], tuple[Any, ...], dict[str, Any]]]:
    """Name, check, arguments."""
    for seed in range(ROUNDS):
        yield f"pieces: {seed}", anything, (seed,), {}
    yield "pieces: one of 128k among forty", long_rows, ([(1, 500)] * 20 + [(1, 131_072)] + [(1, 700)] * 20,), {}
    yield "pieces: ten queries on 100k", long_rows, ([(10, 100_000)],), {}
    beside = [(10, 100_000), (700, 700)]
    yield "pieces: of 70B, ten queries on 100k beside a prompt", long_rows, (beside,), {"group": 8}
    beside = [(10, 100_000), (1200, 1200)]
    yield "pieces: with an FP8 cache, the same", long_rows, (beside,), {"kv_bytes": 1}
    beside = [(10, 100_000), *[(500, 500)] * 4]
    yield "pieces: ten queries on 100k beside four prompts", long_rows, (beside,), {}
    beside = [(3, 100_000), (100, 100)]
    yield "pieces: of latents, three queries on 100k", long_rows, (beside,), {"group": 128, "latent": True}
    yield "pieces: short queries of many lengths", long_rows, ([(3, 90_000), (16, 20), (2, 2), (9, 4000)] * 3,), {}
