"""What `top_k`, `top_p` and `min_p` keep on a GPU, without a sorted vocabulary: a threshold on the logits of each row.

It is found by bisection over the numbers themselves, since the bits of fp32 numbers stand in the order of the numbers.
Passes over the whole vocabulary by the one program of a row would leave the rest of a GPU idle, so the bisection runs
over candidates, which the whole GPU collects first: logits from a floor on that cannot be above the threshold. For
`top_k` the floor is the k-th of the largest of each `PEAK` logits, since those are k logits already; for `top_p` it is
a logit so small that the whole vocabulary at it would weigh less than what may be dropped.

Candidates stand in no order that would be the same twice. What they weigh is therefore summed in whole numbers.
"""

import torch
import triton
import triton.language as tl

from engine.kernels.launches import launch

TILE = 1024
"""Logits of a program."""
PEAK = 128
"""Logits whose largest is kept apart. With more peaks than `top_k`, few candidates are too many."""
COLUMNS = ("temperatures", "top_ks", "top_ps", "min_ps")
"""A number for each row. They come together in one copy and begin anywhere in it, which is not worth kernels of its
own (see `engine.kernels.triton_attention.LISTS`)."""
UNIT = tl.constexpr(2.0**40)
"""What the best token weighs, as a whole number. 2^18 tokens of that weight are still an int64."""


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def peaks_kernel(x, temperatures, peaks, masses, vocab, num_tiles, TILE: tl.constexpr, PEAK: tl.constexpr):
    """Grid (rows, tiles). Of x fp32 `[R, V]` the largest of each `PEAK` logits into peaks `[R, tiles * TILE / PEAK]`,
    and into masses `[R, tiles]` what each tile weighs, measured by its own best."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    token = tile * TILE + tl.arange(0, TILE)
    value = tl.load(x + row * vocab + token, mask=token < vocab, other=float("-inf"))
    peak = tl.max(tl.reshape(value, (TILE // PEAK, PEAK)), 1)
    place = (row * num_tiles + tile) * (TILE // PEAK) + tl.arange(0, TILE // PEAK)
    tl.store(peaks + place, peak)
    temperature = tl.load(temperatures + row)
    best = tl.max(peak, 0)
    temperature = tl.where(temperature > 0.0, temperature, 1.0)
    mass = tl.where(value > float("-inf"), tl.exp((value - best) / temperature), 0.0)
    tl.store(masses + row * num_tiles + tile, tl.sum(mass, 0))


@triton.jit
def _bits(value):
    """An fp32 number's place in the order of all, as an int64."""
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(tl.int64)


@triton.jit
def _number(place):
    """The number at a place."""
    bits = place.to(tl.int32)
    return tl.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def _kept(values, size, bound, best, temperature, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """What those of `size` values from `bound` on weigh, by number or in `UNIT`s of the best, and their number."""
    weight = tl.full((), 0, tl.int64)
    count = 0
    for start in range(0, size, TILE):
        place = start + tl.arange(0, TILE)
        value = tl.load(values + place, mask=place < size, other=float("-inf"))
        is_kept = (value >= bound) & (place < size)
        count += tl.sum(is_kept.to(tl.int32), 0)
        if BY_MASS:
            mass = tl.exp((value - best) / temperature) * UNIT
            weight += tl.sum(tl.where(is_kept, mass, 0.0).to(tl.int64), 0)
    if not BY_MASS:
        weight += count
    return weight, count


@triton.jit
def _largest_bound(values, size, floor, target, best, temperature, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """The largest bound from which on, and from `floor` on, `size` values weigh `target` or more."""
    low = _bits(floor)
    high = _bits(best)
    count_low = size
    count_above = 0
    while low < high:
        middle = low + (high - low + 1) // 2
        weight, count = _kept(values, size, _number(middle), best, temperature, BY_MASS, TILE)
        if weight >= target:
            low = middle
            count_low = count
        else:
            high = middle - 1
            count_above = count
        if count_low - count_above <= 1:  # between the two is the one value that decides
            high = low
    return _number(low)


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def floors_kernel(
    peaks, masses, temperatures, top_ks, top_ps, bests, totals, floors, counts, vocab, num_tiles,
    TILES_PAD: tl.constexpr, TILE: tl.constexpr, PEAK: tl.constexpr,
):  # fmt: skip
    """Grid (rows). Each row's best logit, what all of it weighs in `UNIT`s of that, and from where on candidates are
    collected: infinity if no filter needs any. Sets counts to 0."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES_PAD)
    part = tl.arange(0, TILE // PEAK)
    own = peaks + row * num_tiles * (TILE // PEAK)
    place = tile[:, None] * (TILE // PEAK) + part[None, :]
    tops = tl.max(tl.load(own + place, mask=tile[:, None] < num_tiles, other=float("-inf")), 1)
    best = tl.max(tops, 0)
    temperature = tl.load(temperatures + row)
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    floor = float("inf")
    total = tl.full((), 0, tl.int64)
    if temperature > 0.0:
        mass = tl.load(masses + row * num_tiles + tile, mask=tile < num_tiles, other=0.0)
        mass *= tl.where(tops > float("-inf"), tl.exp((tops - best) / temperature), 0.0)
        total = (tl.sum(mass, 0) * UNIT).to(tl.int64)
        if (top_k > 0) & (top_k < vocab):
            floor = best - float("inf")
            if top_k <= tl.cdiv(vocab, PEAK):
                size = num_tiles * (TILE // PEAK)
                floor = _largest_bound(own, size, floor, top_k, best, temperature, False, TILE)
        elif top_p < 1.0:
            floor = best - temperature * tl.log(vocab / (1.0 - top_p))
    tl.store(bests + row, best)
    tl.store(totals + row, total)
    tl.store(floors + row, floor)
    tl.store(counts + row, 0)


@triton.jit
def gather_kernel(x, peaks, floors, candidates, counts, vocab, num_tiles, TILE: tl.constexpr, PEAK: tl.constexpr):
    """Grid (rows, tiles). Each row's logits from its floor on, to the front of candidates `[R, V]`, in any order."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    floor = tl.load(floors + row)
    part = tl.arange(0, TILE // PEAK)
    if tl.max(tl.load(peaks + (row * num_tiles + tile) * (TILE // PEAK) + part), 0) >= floor:
        token = tile * TILE + tl.arange(0, TILE)
        value = tl.load(x + row * vocab + token, mask=token < vocab, other=float("-inf"))
        is_kept = ((value >= floor) & (token < vocab)).to(tl.int32)
        start = tl.atomic_add(counts + row, tl.sum(is_kept, 0))
        place = start + tl.cumsum(is_kept, 0) - 1
        tl.store(candidates + row * vocab + place, value, mask=is_kept != 0)


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def thresholds_kernel(
    candidates, counts, temperatures, top_ks, top_ps, min_ps, bests, totals, floors, thresholds, vocab,
    TILE: tl.constexpr,
):  # fmt: skip
    """Grid (rows). See `thresholds`."""
    row = tl.program_id(0).to(tl.int64)
    own = candidates + row * vocab
    size = tl.load(counts + row)
    best = tl.load(bests + row)
    temperature = tl.load(temperatures + row)
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    min_p = tl.load(min_ps + row)
    has_k = (temperature > 0.0) & (top_k > 0) & (top_k < vocab)
    mass = tl.load(totals + row)
    bound = best - float("inf")
    if has_k:
        bound = _largest_bound(own, size, tl.load(floors + row), top_k, best, temperature, False, TILE)
        mass, _ = _kept(own, size, bound, best, temperature, True, TILE)
    if (temperature > 0.0) & (top_p < 1.0):
        bound = tl.maximum(bound, tl.load(floors + row))
        target = (mass.to(tl.float32) * top_p).to(tl.int64)
        bound = _largest_bound(own, size, bound, target, best, temperature, True, TILE)
    if (temperature > 0.0) & (min_p > 0.0):
        bound = tl.maximum(bound, best + temperature * tl.log(min_p))
    tl.store(thresholds + row, bound)


def thresholds(
    x: torch.Tensor, temperatures: torch.Tensor, top_ks: torch.Tensor, top_ps: torch.Tensor, min_ps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 `[R]` each: the largest of each row of x fp32 `[R, V]`, and the least that its filters keep.

    Each filter judges what the one before has kept: `top_ks` int64 `[R]` (0: off), `top_ps` fp32 (1: off), `min_ps`
    fp32 (0: off). Equal logits are kept or dropped together. Rows with a temperature of 0 keep all.
    """
    rows, vocab = x.shape
    tiles = triton.cdiv(vocab, TILE)
    peaks = torch.empty(rows, tiles * (TILE // PEAK), dtype=torch.float32, device=x.device)
    masses = torch.empty(rows, tiles, dtype=torch.float32, device=x.device)
    bests, floors, bounds = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(3))
    totals = torch.empty(rows, dtype=torch.int64, device=x.device)
    counts = torch.empty(rows, dtype=torch.int32, device=x.device)
    candidates = torch.empty_like(x)
    tile = {"TILE": TILE, "PEAK": PEAK}
    launch(peaks_kernel, (rows, tiles), x, temperatures, peaks, masses, vocab, tiles, **tile, num_warps=4)
    launch(
        floors_kernel, (rows,), peaks, masses, temperatures, top_ks, top_ps, bests, totals, floors, counts, vocab,
        tiles, TILES_PAD=triton.next_power_of_2(tiles), **tile, num_warps=8,
    )  # fmt: skip
    launch(gather_kernel, (rows, tiles), x, peaks, floors, candidates, counts, vocab, tiles, **tile, num_warps=4)
    launch(
        thresholds_kernel, (rows,), candidates, counts, temperatures, top_ks, top_ps, min_ps, bests, totals, floors,
        bounds, vocab, TILE=TILE, num_warps=8,
    )  # fmt: skip
    return bests, bounds
