"""Paged attention on CUDA: prompts, decoding rows and mixtures of both in one launch.

A program takes the queries of a few tokens of one sequence, with all query heads of one KV head packed as rows, and
walks over the keys that they may see; so keys and values are read once for the whole group of heads. What it must move
is thus the cache of the sequence, 2 · context · kv_heads · dim numbers, and at decoding it does 2 · group operations
for each number, far below what a GPU can do in the time of reading it: reading is the limit. A decoding step of few
sequences would leave most of the GPU idle; there the keys are split, and a second kernel puts the parts together
(Dao et al., "Flash-Decoding", 2023; the softmax in pieces: Milakov and Gimelshein, "Online normalizer calculation",
2018).

Where values are the first numbers of keys (`LayerCache.is_latent`: 512 of 576 in DeepSeek-R1), a tile of these is
loaded once and serves both products, and what is left of the keys is a tile of its own, so that 576 are not padded to
1024. A group of 128 heads has sums of 128 · 512 numbers, as many as a processor has registers: there a program takes a
part of the heads.

Lengths are read from device memory and the grid depends on shapes alone, so that a captured graph stays right.
"""

import torch
import triton
import triton.language as tl

from engine.device.kv_cache import LayerCache
from engine.kernels.launch_shapes import SMALLEST_ROWS, LaunchShape, launch_key, launch_shape, smallest_rows
from engine.kernels.launches import launch

MAX_SPLITS = 64
PROGRAMS = 4
"""Programs for each processor: together they keep enough of the cache on its way to hide how long reading takes."""
SMALLEST_WIDTH = 16
"""Fewer numbers than this a matrix unit does not sum up."""
JOINED_WIDTH = 256
"""Numbers of a row whose parts one program joins."""
STEPS = ("table_stride", "num_seqs", "splits")
LISTS = ("tables", "lens", "starts")
"""What differs from step to step: numbers, and parts of lists, which begin anywhere. Triton would build a kernel for
each kind of them, while requests wait."""


@triton.jit
def _sequence_of(starts, tile, num_seqs, TOKENS: tl.constexpr):
    """The sequence that a tile of queries is of: the last whose tiles begin at or before it, or the first."""
    low = 1
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts + middle) // TOKENS + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _attend_to(
    queries, rest, position, acc, biggest, total, keys_at, values_at, key, slot, is_key, scale, softcap, window,
    DIM: tl.constexpr, V_DIM: tl.constexpr, DIM_PAD: tl.constexpr, V_DIM_PAD: tl.constexpr, REST_PAD: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take a tile of keys, in `slot`s of one KV head, into the softmax of some rows: its sums, biggest score, total."""
    v_dim = tl.arange(0, V_DIM_PAD)
    if REST_PAD:
        values = tl.load(
            keys_at + slot[:, None] * DIM + v_dim[None, :], mask=is_key[:, None] & (v_dim < V_DIM)[None, :], other=0.0
        ).to(queries.dtype)
        last = tl.arange(0, REST_PAD) + V_DIM
        keys = tl.load(
            keys_at + slot[None, :] * DIM + last[:, None], mask=is_key[None, :] & (last < DIM)[:, None], other=0.0
        ).to(queries.dtype)
        scores = tl.dot(queries, tl.trans(values), input_precision=PRECISION)
        scores = tl.dot(rest, keys, scores, input_precision=PRECISION) * scale
    else:
        dim = tl.arange(0, DIM_PAD)
        keys = tl.load(
            keys_at + slot[None, :] * DIM + dim[:, None], mask=is_key[None, :] & (dim < DIM)[:, None], other=0.0
        ).to(queries.dtype)
        scores = tl.dot(queries, keys, input_precision=PRECISION) * scale
    if SOFTCAP:
        # tanh by the logistic function, which both ends of the range leave finite.
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
    distance = position[:, None] - key[None, :]
    seen = is_key[None, :] & (distance >= 0)
    if WINDOW:
        seen = seen & (distance < window)
    # Powers of two are cheaper: exp(x) = 2 ** (x / ln 2).
    scores = tl.where(seen, scores * 1.4426950408889634, float("-inf"))
    new_biggest = tl.maximum(biggest, tl.max(scores, 1))
    # A row that has seen nothing yet has no biggest score; any number will do.
    pivot = tl.where(new_biggest == float("-inf"), 0.0, new_biggest)
    weights = tl.exp2(scores - pivot[:, None])
    shrink = tl.exp2(biggest - pivot)
    total = total * shrink + tl.sum(weights, 1)
    if not REST_PAD:
        values = tl.load(
            values_at + slot[:, None] * V_DIM + v_dim[None, :], mask=is_key[:, None] & (v_dim < V_DIM)[None, :],
            other=0.0,
        ).to(queries.dtype)  # fmt: skip
    acc = acc * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    return acc, new_biggest, total


@triton.jit(do_not_specialize=STEPS, do_not_specialize_on_alignment=LISTS)
def attend_kernel(
    q, k_cache, v_cache, tables, lens, starts, out, part_acc, part_max, part_sum,
    q_head_stride, q_token_stride, k_head_stride, v_head_stride, table_stride, num_seqs, num_heads,
    scale, softcap, window, splits,
    GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr, V_DIM_PAD: tl.constexpr, REST_PAD: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    TILE: tl.constexpr, SPLIT: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, ONE_QUERY: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of queries, KV heads times parts of HEADS heads of their groups, splits). See `paged_attention`.

    DIM_PAD is the padded width of keys; with REST_PAD that of what keys have beside the values.
    """
    PARTS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    tile, kv_head, split = tl.program_id(0), tl.program_id(1) // PARTS, tl.program_id(2)
    if ONE_QUERY:
        sequence, start, query_len, first = tile, tile, 1, 0
    else:
        sequence = _sequence_of(starts, tile, num_seqs, TOKENS)
        start = tl.load(starts + sequence)
        query_len = tl.load(starts + sequence + 1) - start
        first = (tile - (start // TOKENS + sequence)) * TOKENS
        if tl.abs(first) >= query_len:  # below zero before a first sequence without queries
            return
    context = tl.load(lens + sequence)
    row = tl.arange(0, ROWS)
    member = tl.program_id(1) % PARTS * HEADS + row % HEADS
    token, head = first + row // HEADS, kv_head * GROUP + member
    row_is_real = (row // HEADS < TOKENS) & (token < query_len) & (member < GROUP)
    position = context - query_len + token
    v_dim = tl.arange(0, V_DIM_PAD)
    at = q + (head.to(tl.int64) * q_head_stride + (start + token).to(tl.int64) * q_token_stride)[:, None]
    if REST_PAD:
        last = tl.arange(0, REST_PAD) + V_DIM
        queries = tl.load(at + v_dim[None, :], mask=row_is_real[:, None] & (v_dim < V_DIM)[None, :], other=0.0)
        rest = tl.load(at + last[None, :], mask=row_is_real[:, None] & (last < DIM)[None, :], other=0.0)
    else:
        dim = tl.arange(0, DIM_PAD)
        queries = tl.load(at + dim[None, :], mask=row_is_real[:, None] & (dim < DIM)[None, :], other=0.0)
        rest = 0.0
    num_keys = context - query_len + tl.minimum(first + TOKENS, query_len)
    begin = 0
    if WINDOW:
        begin = tl.maximum(context - query_len + first - window + 1, 0) // TILE * TILE
    per_split = tl.cdiv(num_keys - begin, TILE) * TILE
    if SPLIT:
        per_split = tl.cdiv(tl.cdiv(num_keys - begin, TILE), splits) * TILE
    low = begin + split * per_split
    high = tl.minimum(low + per_split, num_keys)
    biggest, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, V_DIM_PAD], tl.float32)
    keys_at = k_cache + kv_head.to(tl.int64) * k_head_stride
    values_at = v_cache + kv_head.to(tl.int64) * v_head_stride
    for base in range(low, high, TILE):
        key = base + tl.arange(0, TILE)
        is_key = key < high
        block = tl.load(tables + sequence.to(tl.int64) * table_stride + key // BLOCK_SIZE, mask=is_key, other=0)
        acc, biggest, total = _attend_to(
            queries, rest, position, acc, biggest, total, keys_at, values_at, key,
            block.to(tl.int64) * BLOCK_SIZE + key % BLOCK_SIZE, is_key, scale, softcap, window,
            DIM, V_DIM, DIM_PAD, V_DIM_PAD, REST_PAD, SOFTCAP, WINDOW, PRECISION,
        )  # fmt: skip
    out_row = (start + token).to(tl.int64) * num_heads + head
    is_out = row_is_real[:, None] & (v_dim < V_DIM)[None, :]
    if not SPLIT:
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(out + out_row[:, None] * V_DIM + v_dim[None, :], acc.to(out.dtype.element_ty), mask=is_out)
    else:
        part = out_row * splits + split
        tl.store(part_acc + part[:, None] * V_DIM + v_dim[None, :], acc, mask=is_out)
        tl.store(part_max + part, biggest, mask=row_is_real)
        tl.store(part_sum + part, total, mask=row_is_real)


@triton.jit
def join_splits_kernel(
    out, part_acc, part_max, part_sum, V_DIM: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr
):
    """Grid (tokens · heads, parts of WIDTH numbers). One row of the output from its parts."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    dim = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    biggest = tl.load(part_max + row * SPLITS + split)
    total = tl.load(part_sum + row * SPLITS + split)
    largest = tl.max(biggest, 0)
    weight = tl.where(total > 0.0, tl.exp2(biggest - tl.where(largest == float("-inf"), 0.0, largest)), 0.0)
    places = (row * SPLITS + split)[:, None] * V_DIM + dim[None, :]
    acc = tl.load(part_acc + places, mask=(dim < V_DIM)[None, :], other=0.0)
    # Parts that saw no key were never summed up, and may hold anything.
    joined = tl.sum(tl.where((weight > 0.0)[:, None], acc * weight[:, None], 0.0), 0)
    whole = tl.sum(weight * total, 0)
    joined = joined / tl.where(whole == 0.0, 1.0, whole)
    tl.store(out + row * V_DIM + dim, joined.to(out.dtype.element_ty), mask=dim < V_DIM)


def choose_splits(num_tiles: int, num_parts: int, max_context: int, num_processors: int) -> int:
    """Parts of the keys for a step of decoding rows: enough programs for every processor, of 128 keys or more.

    `num_parts` is how many programs the heads of a tile are dealt out to (`decoding_parts`).
    """
    wanted = PROGRAMS * num_processors // max(1, num_tiles * num_parts)
    useful = triton.next_power_of_2(max_context // 128 + 1)
    return max(1, min(MAX_SPLITS, triton.next_power_of_2(wanted + 1) // 2, useful))


def padded(width: int) -> int:
    """The width that the kernel computes with."""
    return max(SMALLEST_WIDTH, int(triton.next_power_of_2(width)))


def decoding_parts(heads: int, cache: LayerCache) -> int:
    """Programs that the heads of a decoding row are dealt out to, before keys are split."""
    kv_heads, group = cache.k.shape[0], heads // cache.k.shape[0]
    return kv_heads * -(-group // min(group, _shape_for(cache, group, 1).rows))


def _shape_for(cache: LayerCache, group: int, max_query_len: int) -> LaunchShape:
    fewest = SMALLEST_ROWS if cache.is_latent else smallest_rows(group)
    is_prompt = max_query_len > max(1, fewest // group)
    return launch_shape(launch_key(cache.k.shape[2], group, is_prompt=is_prompt, is_latent=cache.is_latent))


def paged_attention(
    q: torch.Tensor,
    cache: LayerCache,
    tables: torch.Tensor,
    lens: torch.Tensor,
    starts: torch.Tensor,
    *,
    block_size: int,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
    max_query_len: int,
    splits: int = 1,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend with q `[H, T, Dk]` (any strides but the last) over the blocks of S sequences; returns `[T, H, Dv]`.

    The cache is in q's dtype or in e4m3, contiguous; tables int32 `[S, blocks]`; lens int32 `[S]`, contexts with this
    step's tokens; starts int32 `[S + 1]`, where each sequence's queries begin in T. A sequence without queries is
    passed over; if the first has none, tokens before its beginning are left alone. `splits` above 1 is for steps whose
    sequences have a query or few each. The result is written to `out`, contiguous, where one is given.
    """
    num_heads, num_tokens, dim = q.shape
    num_kv_heads, v_dim = cache.k.shape[0], cache.v.shape[2]
    group, num_seqs = num_heads // num_kv_heads, lens.shape[0]
    shape = _shape_for(cache, group, max_query_len)
    at_once = min(group, shape.rows)
    tokens = shape.rows // at_once
    if out is None:
        out = torch.empty(num_tokens, num_heads, v_dim, dtype=q.dtype, device=q.device)
    parts = (num_tokens, num_heads, splits)
    part_acc = part_max = part_sum = out
    if splits > 1:
        part_acc = torch.empty(*parts, v_dim, dtype=torch.float32, device=q.device)
        part_max, part_sum = (torch.empty(parts, dtype=torch.float32, device=q.device) for _ in range(2))
    one_query = max_query_len == 1 and num_tokens == num_seqs
    grid = (num_seqs if one_query else num_tokens // tokens + num_seqs, num_kv_heads * -(-group // at_once), splits)
    launch(
        attend_kernel, grid,
        q, cache.k, cache.v, tables, lens, starts, out, part_acc, part_max, part_sum,
        q.stride(0), q.stride(1), cache.k.stride(0), cache.v.stride(0), tables.stride(0), num_seqs, num_heads,
        scaling, softcap or 1.0, window or 0, splits,
        GROUP=group, HEADS=at_once, BLOCK_SIZE=block_size, DIM=dim, V_DIM=v_dim, DIM_PAD=padded(dim),
        V_DIM_PAD=padded(v_dim), REST_PAD=padded(dim - v_dim) if cache.is_latent else 0, ROWS=shape.rows,
        TOKENS=tokens, TILE=shape.tile, SPLIT=splits > 1, SOFTCAP=softcap is not None, WINDOW=window is not None,
        ONE_QUERY=one_query, PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip
    if splits > 1:
        width = min(padded(v_dim), JOINED_WIDTH)
        launch(
            join_splits_kernel, (num_tokens * num_heads, padded(v_dim) // width),
            out, part_acc, part_max, part_sum, V_DIM=v_dim, WIDTH=width, SPLITS=splits, num_warps=4,
        )  # fmt: skip
    return out
