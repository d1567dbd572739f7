"""Paged attention on CUDA: prompts, decoding rows and mixtures of both in one launch.

A program takes the queries of a few tokens of one sequence, with all query heads of one KV head packed as rows, and
walks over the keys that they may see; so keys and values are read once for the whole group of heads. What it must move
is thus the cache of the sequence, 2 · context · kv_heads · dim numbers, and at decoding it does 2 · group operations
for each number, far below what a GPU can do in the time of reading it: reading is the limit. Where a few long rows
would leave most of the GPU idle their keys are cut into pieces (`engine.kernels.triton_pieces`), and a second kernel
joins what these come to (Dao et al., "Flash-Decoding", 2023; the softmax in pieces: Milakov and Gimelshein, "Online
normalizer calculation", 2018).

For prompts computing is the limit: tiles of keys that all of a program's rows see are taken without a mask, and what
scores are multiplied with is one factor, of powers of two, which are cheaper than those of e. Rows that decode have one
loop, since a second takes registers for which fewer programs share a processor.

Where values are the first numbers of keys (`LayerCache.is_latent`: 512 of 576 in DeepSeek-R1), a tile of these is
loaded once and serves both products, and what is left of the keys is a tile of its own, so that 576 are not padded to
1024. A group of 128 heads has sums of 128 · 512 numbers, as many as a processor has registers: there a program takes a
part of the heads.
"""

import torch
import triton
import triton.language as tl

from engine.device.kv_cache import LayerCache
from engine.kernels.launches import launch, power_of_2
from engine.kernels.triton_dependent import await_previous
from engine.kernels.triton_pieces import JOIN, PIECE, Layout, Pieces, lay_out

SMALLEST_WIDTH = 16
"""Fewer numbers than this a matrix unit does not sum up."""
JOINED_WIDTH, JOINED_NUMBERS = 256, 4096
"""Numbers of a row that one program joins, and of all its rows, as far as registers go."""
LOG2_E = 1.4426950408889634
STEPS = ("table_stride",)
LISTS = ("tables",)
"""See `engine.kernels.triton_pieces.LISTS`."""


@triton.jit
def _numbers(at, is_number, PADDED: tl.constexpr):
    """A tile of keys or values; 0 where widths are padded."""
    return tl.load(at, mask=is_number, other=0.0) if PADDED else tl.load(at)


@triton.jit
def _attend_to(
    queries, rest, position, acc, biggest, total, keys_at, values_at, key, high, slot, scale, softcap, window,
    DIM: tl.constexpr, V_DIM: tl.constexpr, DIM_PAD: tl.constexpr, V_DIM_PAD: tl.constexpr, REST_PAD: tl.constexpr,
    TOKENS: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take a tile of keys, in `slot`s of one KV head, into the softmax of some rows: its sums, biggest score, total.

    Scores are powers of two: products times `scale`, or with SOFTCAP `softcap` times the tanh of half of that.
    """
    v_dim = tl.arange(0, V_DIM_PAD)
    if REST_PAD:
        at = keys_at + slot[:, None] * DIM + v_dim[None, :]
        values = _numbers(at, (v_dim < V_DIM)[None, :], V_DIM < V_DIM_PAD).to(queries.dtype)
        last = tl.arange(0, REST_PAD) + V_DIM
        at = keys_at + slot[None, :] * DIM + last[:, None]
        keys = _numbers(at, (last < DIM)[:, None], DIM - V_DIM < REST_PAD).to(queries.dtype)
        scores = tl.dot(queries, tl.trans(values), input_precision=PRECISION)
        scores = tl.dot(rest, keys, scores, input_precision=PRECISION)
    else:
        dim = tl.arange(0, DIM_PAD)
        at = keys_at + slot[None, :] * DIM + dim[:, None]
        keys = _numbers(at, (dim < DIM)[:, None], DIM < DIM_PAD).to(queries.dtype)
        scores = tl.dot(queries, keys, input_precision=PRECISION)
    factor = scale
    if SOFTCAP:
        # tanh by the logistic function, which both ends of the range leave finite.
        scores = 2.0 * tl.sigmoid(scores * scale) - 1.0
        factor = softcap
    if MASKED:
        seen = (key < high)[None, :]
        if TOKENS > 1:  # a row's only query sees all that its piece ends with
            seen = seen & (position[:, None] >= key[None, :])
        if WINDOW:
            seen = seen & (position[:, None] - key[None, :] < window)
        scores = tl.where(seen, scores, float("-inf"))
    new_biggest = tl.maximum(biggest, tl.max(scores, 1) * factor)
    # A row that has seen nothing yet has no biggest score; any number will do.
    pivot = tl.where(new_biggest == float("-inf"), 0.0, new_biggest)
    weights = tl.exp2(scores * factor - pivot[:, None])
    shrink = tl.exp2(biggest - pivot)
    total = total * shrink + tl.sum(weights, 1)
    if not REST_PAD:
        at = values_at + slot[:, None] * V_DIM + v_dim[None, :]
        values = _numbers(at, (v_dim < V_DIM)[None, :], V_DIM < V_DIM_PAD).to(queries.dtype)
    acc = acc * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    return acc, new_biggest, total


@triton.jit
def _walk(
    queries, rest, position, acc, biggest, total, keys_at, values_at, table, low, high, scale, softcap, window,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    V_DIM_PAD: tl.constexpr, REST_PAD: tl.constexpr, TOKENS: tl.constexpr, SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take the keys from `low` to `high`; without MASKED these are whole tiles that every row sees."""
    for base in range(low, high, TILE):
        key = base + tl.arange(0, TILE)
        # Behind the last key it is read again: a weight of zero would make no number of what else may be there.
        real = tl.minimum(key, high - 1) if MASKED else key
        block = tl.load(table + real // BLOCK_SIZE)
        acc, biggest, total = _attend_to(
            queries, rest, position, acc, biggest, total, keys_at, values_at, key, high,
            block.to(tl.int64) * BLOCK_SIZE + real % BLOCK_SIZE, scale, softcap, window,
            DIM, V_DIM, DIM_PAD, V_DIM_PAD, REST_PAD, TOKENS, SOFTCAP, WINDOW, PRECISION, MASKED,
        )  # fmt: skip
    return acc, biggest, total


@triton.jit(do_not_specialize=STEPS, do_not_specialize_on_alignment=LISTS)
def attend_kernel(
    q, k_cache, v_cache, tables, pieces, out, part_acc, part_max, part_sum,
    q_head_stride, q_token_stride, k_head_stride, v_head_stride, table_stride, num_heads, scale, softcap, window,
    GROUP: tl.constexpr, HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, V_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr, V_DIM_PAD: tl.constexpr, REST_PAD: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    TILE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr, PIECE: tl.constexpr,
    WHOLE: tl.constexpr, DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (pieces, KV heads times parts of HEADS heads of their groups). See `paged_attention`.

    DIM_PAD is the padded width of keys; with REST_PAD that of what keys have beside the values. With WHOLE tiles that
    all rows see are taken in a loop of their own.
    """
    await_previous(DEPENDENT)
    PARTS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    piece, kv_head = pieces + tl.program_id(0) * PIECE, tl.program_id(1) // PARTS
    sequence, start, num_queries, place = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2), tl.load(piece + 3)
    low, high, slot = tl.load(piece + 4), tl.load(piece + 5), tl.load(piece + 6)
    if num_queries == 0:
        return
    row = tl.arange(0, ROWS)
    token = row // HEADS
    member = tl.program_id(1) % PARTS * HEADS + row % HEADS
    head = kv_head * GROUP + member
    row_is_real = (token < num_queries) & (member < GROUP)
    position = place + token
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
    if (k_cache.dtype.element_ty == tl.float8e4nv) and (queries.dtype == tl.bfloat16):
        # Numbers in e4m3 become fp16 two by two, bf16 one by one by way of fp32, which takes longer than reading them.
        queries = tl.clamp(queries.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
        if REST_PAD:
            rest = tl.clamp(rest.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
    biggest, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, V_DIM_PAD], tl.float32)
    keys_at = k_cache + kv_head.to(tl.int64) * k_head_stride
    values_at = v_cache + kv_head.to(tl.int64) * v_head_stride
    table = tables + sequence.to(tl.int64) * table_stride
    if WHOLE:
        whole = low + tl.maximum(tl.minimum(high, place + 1) - low, 0) // TILE * TILE
        acc, biggest, total = _walk(
            queries, rest, position, acc, biggest, total, keys_at, values_at, table, low, whole, scale, softcap, window,
            BLOCK_SIZE, TILE, DIM, V_DIM, DIM_PAD, V_DIM_PAD, REST_PAD, TOKENS, SOFTCAP, WINDOW, PRECISION, False,
        )  # fmt: skip
        low = whole
    acc, biggest, total = _walk(
        queries, rest, position, acc, biggest, total, keys_at, values_at, table, low, high, scale, softcap, window,
        BLOCK_SIZE, TILE, DIM, V_DIM, DIM_PAD, V_DIM_PAD, REST_PAD, TOKENS, SOFTCAP, WINDOW, PRECISION, True,
    )  # fmt: skip
    is_out = row_is_real[:, None] & (v_dim < V_DIM)[None, :]
    if slot < 0:
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        out_row = (start + token).to(tl.int64) * num_heads + head
        tl.store(out + out_row[:, None] * V_DIM + v_dim[None, :], acc.to(out.dtype.element_ty), mask=is_out)
    else:
        part = (slot.to(tl.int64) * TOKENS + token) * num_heads + head
        tl.store(part_acc + part[:, None] * V_DIM + v_dim[None, :], acc, mask=is_out)
        tl.store(part_max + part, biggest, mask=row_is_real)
        tl.store(part_sum + part, total, mask=row_is_real)


@triton.jit
def join_kernel(
    joins, out, part_acc, part_max, part_sum, num_heads, V_DIM: tl.constexpr, WIDTH: tl.constexpr,
    TOKENS: tl.constexpr, TOKENS_PAD: tl.constexpr, PARTS: tl.constexpr, JOIN: tl.constexpr,
    DEPENDENT: tl.constexpr = False,
):  # fmt: skip
    """Grid (tiles that are cut, heads, parts of WIDTH numbers). A head's rows of a tile from their pieces."""
    await_previous(DEPENDENT)
    join, head = joins + tl.program_id(0) * JOIN, tl.program_id(1)
    start, num_queries, slot, number = tl.load(join), tl.load(join + 1), tl.load(join + 2), tl.load(join + 3)
    if number == 0:
        return
    token, dim = tl.arange(0, TOKENS_PAD), tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    biggest, total = tl.full([TOKENS_PAD], float("-inf"), tl.float32), tl.zeros([TOKENS_PAD], tl.float32)
    acc = tl.zeros([TOKENS_PAD, WIDTH], tl.float32)
    for base in range(0, number, PARTS):
        part = base + tl.arange(0, PARTS)
        is_row = (part < number)[:, None] & (token < num_queries)[None, :]
        row = (((slot + part).to(tl.int64) * TOKENS)[:, None] + token[None, :]) * num_heads + head
        bests = tl.load(part_max + row, mask=is_row, other=float("-inf"))
        new_biggest = tl.maximum(biggest, tl.max(bests, 0))
        pivot = tl.where(new_biggest == float("-inf"), 0.0, new_biggest)
        weights, shrink = tl.exp2(bests - pivot[None, :]), tl.exp2(biggest - pivot)
        is_number = is_row[:, :, None] & (dim < V_DIM)[None, None, :]
        parts = tl.load(part_acc + row[:, :, None] * V_DIM + dim[None, None, :], mask=is_number, other=0.0)
        acc = acc * shrink[:, None] + tl.sum(parts * weights[:, :, None], 0)
        total = total * shrink + tl.sum(tl.load(part_sum + row, mask=is_row, other=0.0) * weights, 0)
        biggest = new_biggest
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out_row = (start + token).to(tl.int64) * num_heads + head
    is_out = (token < num_queries)[:, None] & (dim < V_DIM)[None, :]
    tl.store(out + out_row[:, None] * V_DIM + dim[None, :], acc.to(out.dtype.element_ty), mask=is_out)


def padded(width: int) -> int:
    """The width that the kernel computes with."""
    return max(SMALLEST_WIDTH, power_of_2(width))


def fills_registers(cache: LayerCache, computed: torch.dtype) -> bool:
    """Whether prompts have no registers for a second loop, without masks: on wide heads, if e4m3 becomes 16 bits."""
    return not cache.is_latent and cache.k.shape[2] > 128 and cache.k.dtype != computed != torch.float32


def layout_for(q: torch.Tensor, cache: LayerCache, *, num_seqs: int, max_query_len: int, num_processors: int) -> Layout:
    """How a launch with q `[H, T, Dk]` of so many sequences is dealt out."""
    kv_heads = cache.k.shape[0]
    # What meets queries in fp32 is computed with as such.
    kv_bytes = q.itemsize if q.dtype == torch.float32 else cache.k.itemsize
    return lay_out(
        cache.k.shape[2], q.shape[0] // kv_heads, kv_heads, is_latent=cache.is_latent, kv_bytes=kv_bytes,
        num_tokens=q.shape[1], num_seqs=num_seqs, max_query_len=max_query_len, num_processors=num_processors,
    )  # fmt: skip


def join_constants(layout: Layout, v_dim: int) -> dict[str, int]:
    """What the kernel that joins pieces is built for."""
    tokens = power_of_2(layout.tokens)
    width = min(padded(v_dim), JOINED_WIDTH, JOINED_NUMBERS // tokens)
    return {
        "V_DIM": v_dim, "WIDTH": width, "TOKENS": layout.tokens, "TOKENS_PAD": tokens,
        "PARTS": min(32, JOINED_NUMBERS // (width * tokens)), "JOIN": JOIN,
    }  # fmt: skip


def paged_attention(
    q: torch.Tensor,
    cache: LayerCache,
    tables: torch.Tensor,
    pieces: Pieces,
    *,
    block_size: int,
    scaling: float,
    softcap: float | None = None,
    window: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend with q `[H, T, Dk]` (any strides but the last) over the blocks of S sequences; returns `[T, H, Dv]`.

    The cache is in q's dtype or in e4m3, contiguous; tables int32 `[S, blocks]`; pieces are what `cut` makes of the
    sequences for this window, in the layout of q and cache. Tokens of no sequence are left alone. The result is written
    to `out`, contiguous, where one is given.
    """
    num_heads, num_tokens, dim = q.shape
    layout, v_dim = pieces.layout, cache.v.shape[2]
    if out is None:
        out = torch.empty(num_tokens, num_heads, v_dim, dtype=q.dtype, device=q.device)
    rows = (layout.most_slots * layout.tokens, num_heads)
    part_acc = torch.empty(*rows, v_dim, dtype=torch.float32, device=q.device)
    # Each by itself, so that both are aligned, whatever the number of heads.
    part_max, part_sum = (torch.empty(rows, dtype=torch.float32, device=q.device) for _ in range(2))
    factor, cap = (scaling * LOG2_E, 1.0) if softcap is None else (2 * scaling / softcap, softcap * LOG2_E)
    launch(
        attend_kernel, (layout.most_pieces, layout.parts),
        q, cache.k, cache.v, tables, pieces.pieces, out, part_acc, part_max, part_sum,
        q.stride(0), q.stride(1), cache.k.stride(0), cache.v.stride(0), tables.stride(0), num_heads,
        factor, cap, window or 0,
        GROUP=num_heads // cache.k.shape[0], HEADS=layout.heads, BLOCK_SIZE=block_size, DIM=dim, V_DIM=v_dim,
        DIM_PAD=padded(dim), V_DIM_PAD=padded(v_dim), REST_PAD=padded(dim - v_dim) if cache.is_latent else 0,
        ROWS=layout.shape.rows, TOKENS=layout.tokens, TILE=layout.shape.tile, SOFTCAP=softcap is not None,
        WINDOW=window is not None, PRECISION="ieee" if q.dtype == torch.float32 else "tf32", PIECE=PIECE,
        WHOLE=not layout.one_query and window is None and not fills_registers(cache, q.dtype),
        num_warps=layout.shape.num_warps, num_stages=layout.shape.num_stages,
    )  # fmt: skip
    if layout.most_joins:
        constants = join_constants(layout, v_dim)
        launch(
            join_kernel, (layout.most_joins, num_heads, padded(v_dim) // constants["WIDTH"]),
            pieces.joins, out, part_acc, part_max, part_sum, num_heads, **constants,
            num_warps=4 if layout.one_query else 8,
        )  # fmt: skip
    return out
