"""What `top_k`, `top_p` and `min_p` keep on a GPU, without a sorted vocabulary: a threshold on the logits of each row.

Passes over the whole vocabulary by the one program of a row would leave the rest of a GPU idle. So the whole GPU first
collects candidates: logits from a floor on that cannot be above the threshold. For `top_k` the floor is the k-th of the
largest of each `PEAK` logits, since those are k logits already; for `top_p` it is a logit so small that the whole
vocabulary at it would weigh less than what may be dropped. Flat distributions make candidates of nearly all logits, so
the whole GPU also counts and weighs them by `BINS` equally wide bins between the floor, or the least logit, and the
best. The bins say in which of them the threshold lies. The program of the row then goes over the candidates once, to
list the few in that bin, and bisects between them alone, over the numbers themselves, since the bits of fp32 numbers
stand in the order of the numbers.

Candidates stand in no order that would be the same twice. What they weigh is therefore summed in whole numbers.

There are four launches whatever the rows hold. Of a row of V logits with C candidates the whole GPU reads 8 V bytes,
writes 4 C and adds to a bin C times for each of `top_k` and `top_p`; one program reads 4 C bytes once for `top_p` alone
and three times for both. A list of its own launch would spare it that, at the price of a launch for all steps.
"""

import torch
import triton
import triton.language as tl

from engine.kernels.launches import launch, power_of_2, tiles_of

TILE = 1024
"""Logits of a program."""
PEAK = 128
"""Logits whose largest is kept apart. With more peaks than `top_k`, few candidates are too many."""
BINS = 2048
"""Over 14 nats, as far as `top_p` 0.9 reaches in a large vocabulary, few hundred of its logits share a bin."""
LISTED = 4096
"""Most candidates of a bin that are listed, and how many are looked through at once. Where more share a bin, as no
logits do but equal ones or those with others far away, all candidates are bisected."""
COLUMNS = ("temperatures", "top_ks", "top_ps", "min_ps")
"""A number for each row. They come together in one copy and begin anywhere in it, which is not worth kernels of its
own (see `engine.kernels.triton_attention.LISTS`)."""
UNIT = tl.constexpr(2.0**40)
"""What the best token weighs, as a whole number. 2^18 tokens of that weight are still an int64."""


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def peaks_kernel(x, temperatures, peaks, masses, lows, vocab, num_tiles, TILE: tl.constexpr, PEAK: tl.constexpr):
    """Grid (rows, tiles). Of x fp32 `[R, V]` the largest of each `PEAK` logits into peaks `[R, tiles * TILE / PEAK]`;
    into masses `[R, tiles]` what each tile weighs, measured by its own best; into lows the least that is not -inf."""
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
    tl.store(lows + row * num_tiles + tile, tl.min(tl.where(value > float("-inf"), value, float("inf")), 0))


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
def _weight(value, best, temperature):
    """In `UNIT`s of the best."""
    return (tl.exp((value - best) / temperature) * UNIT).to(tl.int64)


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
            weight += tl.sum(tl.where(is_kept, _weight(value, best, temperature), 0), 0)
    if not BY_MASS:
        weight += count
    return weight, count


@triton.jit
def _largest_bound(values, size, floor, ceiling, target, best, temperature, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """The largest bound from `floor` to `ceiling` from which on `size` values weigh `target` or more, else `floor`."""
    low = _bits(floor)
    high = _bits(ceiling)
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


@triton.jit
def _bin(value, low, scale, BINS: tl.constexpr):
    """The bin of a value. It never falls where values rise, so that bins are in the order of their values."""
    return tl.minimum(tl.maximum(((value - low) * scale).to(tl.int32), 0), BINS - 1)


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def floors_kernel(
    peaks, masses, lows, temperatures, top_ks, top_ps, bests, totals, floors, scales, counts, bins, vocab, num_tiles,
    TILES_PAD: tl.constexpr, TILE: tl.constexpr, PEAK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Grid (rows). Each row's best logit, what all of it weighs in `UNIT`s of that, from where on candidates are
    collected, infinity if no filter needs any, and the bins of a logit's difference. Sets counts and bins to 0."""
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
                floor = _largest_bound(own, size, floor, best, top_k, best, temperature, False, TILE)
        elif top_p < 1.0:
            floor = best - temperature * tl.log(vocab / (1.0 - top_p))
    # What is -inf weighs nothing, and is kept only where `top_k` is more than there is beside it.
    low = tl.min(tl.load(lows + row * num_tiles + tile, mask=tile < num_tiles, other=float("inf")), 0)
    floor = tl.maximum(floor, low)
    scale = tl.where(best > floor, BINS / (best - floor), 0.0)
    tl.store(bests + row, best)
    tl.store(totals + row, total)
    tl.store(floors + row, floor)
    tl.store(scales + row, tl.minimum(scale, 1e38))  # times 0 it would be no number if it were infinite
    tl.store(counts + row * 4 + tl.arange(0, 4), tl.zeros((4,), tl.int32))
    each = tl.arange(0, 2 * BINS)
    tl.store(bins + row * 2 * BINS + each, tl.zeros((2 * BINS,), tl.int64))


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def gather_kernel(
    x, peaks, temperatures, top_ks, top_ps, bests, floors, scales, candidates, counts, bins, vocab, num_tiles,
    TILE: tl.constexpr, PEAK: tl.constexpr, BINS: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Grid (rows, tiles). Each row's logits from its floor on, to the front of candidates `[R, V + LISTED]`, in any
    order; how many are in each bin, if there is a `top_k`, and what they weigh, if there is a `top_p`, into bins
    `[R, 2, BINS]`. How many there are goes into the first column of counts `[R, 4]`."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    floor = tl.load(floors + row)
    part = tl.arange(0, TILE // PEAK)
    if tl.max(tl.load(peaks + (row * num_tiles + tile) * (TILE // PEAK) + part), 0) >= floor:
        token = tile * TILE + tl.arange(0, TILE)
        value = tl.load(x + row * vocab + token, mask=token < vocab, other=float("-inf"))
        is_kept = (value >= floor) & (token < vocab)
        start = tl.atomic_add(counts + row * 4, tl.sum(is_kept.to(tl.int32), 0))
        place = start + tl.cumsum(is_kept.to(tl.int32), 0) - 1
        tl.store(candidates + row * (vocab + LISTED) + place, value, mask=is_kept)
        own = bins + row * 2 * BINS + _bin(value, floor, tl.load(scales + row), BINS)
        top_k = tl.load(top_ks + row)
        if (top_k > 0) & (top_k < vocab):
            tl.atomic_add(own, tl.full((TILE,), 1, tl.int64), mask=is_kept, sem="relaxed")
        if tl.load(top_ps + row) < 1.0:
            weight = _weight(value, tl.load(bests + row), tl.load(temperatures + row))
            tl.atomic_add(own + BINS, weight, mask=is_kept, sem="relaxed")


@triton.jit
def _bound(
    candidates, size, vocab, end, low, scale, floor, bins, target, best, temperature,
    BY_MASS: tl.constexpr, TILE: tl.constexpr, BINS: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """The largest bound from `floor` on from which on candidates weigh `target` or more; `floor` if none does.

    The candidates of the bin in which it lies are listed behind all others; end, at first 0, is where the list ends.
    """
    each = tl.arange(0, BINS)
    weight = tl.load(bins + each)
    chosen = tl.max(tl.where(tl.cumsum(weight, 0, reverse=True) >= target, each, 0), 0)
    above = tl.sum(tl.where(each > chosen, weight, 0), 0)
    least = tl.full((LISTED,), float("inf"), tl.float32)
    most = tl.full((LISTED,), float("-inf"), tl.float32)
    ends = end + tl.zeros((LISTED,), tl.int32)
    tl.debug_barrier()  # an earlier list has been read
    for start in range(0, size, LISTED):
        place = start + tl.arange(0, LISTED)
        value = tl.load(candidates + place, mask=place < size, other=float("-inf"))
        is_listed = (_bin(value, low, scale, BINS) == chosen) & (place < size)
        least = tl.minimum(least, tl.where(is_listed, value, float("inf")))
        most = tl.maximum(most, tl.where(is_listed, value, float("-inf")))
        # Running sums would cost more than all the rest, for the few that are listed.
        place = tl.atomic_add(ends, 1, mask=is_listed, sem="relaxed")
        tl.store(candidates + vocab + place, value, mask=is_listed & (place < LISTED))
    tl.debug_barrier()  # what one thread has listed others read
    count = tl.atomic_add(end, 0, sem="relaxed")
    if count <= LISTED:
        candidates += vocab
        size = count
        target -= above
    floor = tl.maximum(floor, tl.where(count > 0, tl.min(least, 0), low))
    return _largest_bound(candidates, size, floor, tl.max(most, 0), target, best, temperature, BY_MASS, TILE)


@triton.jit(do_not_specialize_on_alignment=COLUMNS)
def thresholds_kernel(
    candidates, counts, bins, temperatures, top_ks, top_ps, min_ps, bests, totals, floors, scales, thresholds, vocab,
    TILE: tl.constexpr, BINS: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """Grid (rows). See `thresholds`."""
    row = tl.program_id(0).to(tl.int64)
    own = candidates + row * (vocab + LISTED)
    own_bins = bins + row * 2 * BINS
    size = tl.load(counts + row * 4)
    ends = counts + row * 4 + 1
    low = tl.load(floors + row)
    scale = tl.load(scales + row)
    best = tl.load(bests + row)
    temperature = tl.load(temperatures + row)
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    min_p = tl.load(min_ps + row)
    has_k = (temperature > 0.0) & (top_k > 0) & (top_k < vocab)
    mass = tl.load(totals + row)
    bound = best - float("inf")
    if has_k & (top_k <= size):
        bound = _bound(
            own, size, vocab, ends, low, scale, bound, own_bins, top_k, best, temperature, False, TILE, BINS, LISTED
        )
    if (temperature > 0.0) & (top_p < 1.0):
        if has_k:
            mass, _ = _kept(own, size, bound, best, temperature, True, LISTED)
        target = tl.maximum((mass.to(tl.float32) * top_p).to(tl.int64), 1)
        own_bins += BINS
        bound = _bound(
            own, size, vocab, ends + 1, low, scale, bound, own_bins, target, best, temperature, True, TILE, BINS, LISTED
        )
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
    tiles = tiles_of(vocab, TILE)
    peaks = torch.empty(rows, tiles * (TILE // PEAK), dtype=torch.float32, device=x.device)
    masses, lows = (torch.empty(rows, tiles, dtype=torch.float32, device=x.device) for _ in range(2))
    bests, floors, scales, bounds = (torch.empty(rows, dtype=torch.float32, device=x.device) for _ in range(4))
    totals = torch.empty(rows, dtype=torch.int64, device=x.device)
    counts = torch.empty(rows, 4, dtype=torch.int32, device=x.device)  # of candidates, and of two lists
    bins = torch.empty(rows, 2, BINS, dtype=torch.int64, device=x.device)
    candidates = torch.empty(rows, vocab + LISTED, dtype=torch.float32, device=x.device)
    tile = {"TILE": TILE, "PEAK": PEAK}
    wide = {"BINS": BINS, "LISTED": LISTED}
    launch(peaks_kernel, (rows, tiles), x, temperatures, peaks, masses, lows, vocab, tiles, **tile, num_warps=4)
    launch(
        floors_kernel, (rows,), peaks, masses, lows, temperatures, top_ks, top_ps, bests, totals, floors, scales,
        counts, bins, vocab, tiles, TILES_PAD=power_of_2(tiles), **tile, BINS=BINS, num_warps=8,
    )  # fmt: skip
    launch(
        gather_kernel, (rows, tiles), x, peaks, temperatures, top_ks, top_ps, bests, floors, scales, candidates, counts,
        bins, vocab, tiles, **tile, **wide, num_warps=4,
    )  # fmt: skip
    launch(
        thresholds_kernel, (rows,), candidates, counts, bins, temperatures, top_ks, top_ps, min_ps, bests, totals,
        floors, scales, bounds, vocab, TILE=TILE, **wide, num_warps=16,
    )  # fmt: skip
    return bests, bounds
