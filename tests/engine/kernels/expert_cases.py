"""The kernels of mixtures against their references: sorting, products by expert, groups in FP8."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from engine.kernels import reference, triton_experts, triton_fp8, triton_router
from engine.kernels.reference import RouterRule
from engine.models.experts import Fp8Experts, GroupedExperts
from engine.models.fp8_blocks import BlockFp8Linear
from tests.engine.kernels.devices import DEVICE, DTYPES, HAS_FP8, TOLERANCE, there

Case = tuple[str, Callable[..., None], tuple[Any, ...], dict[str, Any]]


def choices(how: str, tokens: int, num_experts: int, top_k: int) -> torch.Tensor:
    """Experts `[tokens, top_k]`; none twice for a token."""
    if how == "the same":
        return torch.arange(num_experts)[-top_k:].flip(0).expand(tokens, top_k).contiguous()
    if how == "few":  # most experts have no tokens
        return torch.rand(tokens, top_k + 1).topk(top_k).indices * 2
    return torch.rand(tokens, num_experts).topk(top_k).indices


def placing(how: str, tokens: int, num_experts: int, top_k: int, tile: int) -> None:
    """Pairs by expert, in order."""
    index = choices(how, tokens, num_experts, top_k)
    before, triton_experts.PLACE_TILE = triton_experts.PLACE_TILE, tile
    try:
        counts, order = triton_experts.place_rows(*there(index), num_experts)
    finally:
        triton_experts.PLACE_TILE = before
    assert counts.tolist() == torch.bincount(index.flatten(), minlength=num_experts).tolist()
    assert order.tolist() == index.flatten().argsort(stable=True).tolist()


def experts(
    how: str,
    tokens: int,
    dtype: torch.dtype,
    *,
    sizes: tuple[int, int, int, int] = (6, 40, 72, 2),
    activation: str = "silu",
    fp8: bool = False,
) -> None:
    """All of a layer's experts; sizes are experts, inner and hidden width, experts of a token."""
    num_experts, inner, hidden, top_k = sizes
    torch.manual_seed(tokens)
    gate_up = torch.nn.Parameter((torch.randn(num_experts, 2 * inner, hidden) * hidden**-0.5).to(dtype))
    down = torch.nn.Parameter((torch.randn(num_experts, hidden, inner) * inner**-0.5).to(dtype))
    x, index = torch.randn(tokens, hidden).to(dtype), choices(how, tokens, num_experts, top_k)
    weights = torch.rand(tokens, top_k)
    module: Fp8Experts | GroupedExperts
    if fp8:
        module = Fp8Experts.quantized(gate_up.detach(), down.detach(), activation)
    else:
        module = GroupedExperts(gate_up, down, activation, uses_kernels=False)
    with torch.inference_mode():
        wanted = module(x, index, weights)
        module.to(DEVICE).uses_kernels = True
        found = module(*there(x, index, weights))
        again = module(*there(x, index, weights))
    assert torch.equal(found, again) and found.dtype == dtype
    tolerance = TOLERANCE[dtype]
    if fp8 and dtype != torch.float32:  # what differs in the last bit may round to the next number of e4m3
        error = float((found.cpu() - wanted).float().abs().mean() / wanted.float().std())
        assert error < tolerance, error
        return
    torch.testing.assert_close(found.cpu(), wanted, rtol=tolerance, atol=tolerance)


def groups(rows: int, dim: int, dtype: torch.dtype, activation: str | None = None) -> None:
    """Activations in groups of 128 as the reference has them; a NaN stays one, in its group."""
    torch.manual_seed(rows)
    x = (torch.randn(rows, dim * (1 if activation is None else 2)) * torch.logspace(-3, 3, rows)[:, None]).to(dtype)
    x[-1] = 0
    if activation is None:
        x[0, 0] = torch.nan
    numbers, scales = triton_fp8.quantize_groups(*there(x), activation)
    wanted, wanted_scales = reference.quantize_groups(x, activation)
    found = numbers.cpu().float() * spread(scales.cpu(), dim)
    meant = wanted.float() * spread(wanted_scales, dim)
    if activation is not None:  # what differs in the last bit may round to the next number of e4m3
        assert bool(((found - meant).abs() <= 0.07 * meant.abs() + 0.01 * spread(wanted_scales, dim)).all())
        return
    with_nan = wanted_scales.isnan()
    assert bool(spread(with_nan, dim)[found.isnan()].all()) and bool(found[0, 0].isnan())
    assert torch.equal(scales.cpu()[~with_nan], wanted_scales[~with_nan])
    assert torch.equal(found[~spread(with_nan, dim)], meant[~spread(with_nan, dim)])


def block_products(rows: int, width: int, outputs: int, dtype: torch.dtype, *, bias: bool = False) -> None:
    """A linear of blocks of 128, whole ones or not; a row does not depend on its neighbours."""
    torch.manual_seed(rows)
    weight = torch.randn(outputs, width) * torch.logspace(-2, 1, outputs)[:, None] * width**-0.5
    linear = BlockFp8Linear.quantized(weight, torch.randn(outputs).to(dtype) if bias else None)
    x = (torch.randn(rows, width) * torch.logspace(-2, 1, rows)[:, None]).to(dtype)
    with torch.inference_mode():
        wanted = linear.plain_product(x)
        linear.to(DEVICE)
        found = triton_fp8.block_product(x.to(DEVICE), linear.weight, linear.scale, linear.bias)
        x[1:] = torch.nan
        alone = triton_fp8.block_product(x.to(DEVICE), linear.weight, linear.scale, linear.bias)
    assert found.dtype == dtype and torch.equal(alone[0], found[0])
    off = (found.cpu().float() - wanted.float()).abs().mean(0) / wanted.float().abs().mean(0)
    assert float(off.max()) < TOLERANCE[dtype], float(off.max())


def spread(scales: torch.Tensor, dim: int) -> torch.Tensor:
    """Of each number in groups its scale."""
    return scales.repeat_interleave(reference.FP8_BLOCK, 1)[:, :dim]


def choosing(tokens: int, num_experts: int, rule: RouterRule, dtype: torch.dtype, *, bias: bool) -> None:
    """The router's choices, their order and weights; ties go to the first, and NaNs are never out of range."""
    torch.manual_seed(num_experts)
    logits, shift = torch.randn(tokens, num_experts).to(dtype), torch.randn(num_experts) * 0.2 if bias else None
    ours = triton_router.choose_experts(logits.to(DEVICE), None if shift is None else shift.to(DEVICE), rule)
    index, weights = (part.cpu() for part in ours)
    wanted, wanted_weights = reference.choose_experts(logits.float(), shift, rule)
    assert torch.equal(index, wanted) and index.dtype == torch.int64
    torch.testing.assert_close(weights, wanted_weights, rtol=1e-5, atol=1e-6)
    same = torch.zeros(1, num_experts, device=DEVICE)
    assert triton_router.choose_experts(same, None, rule)[0].tolist() == [list(range(rule.choices))]
    index, weights = triton_router.choose_experts(same * torch.nan, None, rule)
    assert bool(((index >= 0) & (index < num_experts)).all()) and bool(weights.isnan().all())


def router_cases() -> Iterator[Case]:
    """DeepSeek-V3's rule, sizes that are no powers of two, and softmax, with and without a sum of one."""
    grouped = RouterRule(8, sigmoid=True, normalises=True, epsilon=1e-20, scaling=2.5, groups=8, top_groups=4)
    yield "router: DeepSeek-V3", choosing, (5, 256, grouped, torch.float32), {"bias": True}
    odd = RouterRule(3, sigmoid=True, normalises=False, groups=3, top_groups=2)
    yield "router: 3 groups of 5", choosing, (7, 15, odd, torch.float32), {"bias": True}
    alone = RouterRule(6, sigmoid=True, normalises=True, epsilon=1e-20)
    yield "router: one group of 100", choosing, (4, 100, alone, torch.float32), {"bias": True}
    for normalises in (True, False):
        rule = RouterRule(8, sigmoid=False, normalises=normalises)
        for dtype in DTYPES:
            yield f"router: softmax, {dtype}, {normalises}", choosing, (3, 60, rule, dtype), {"bias": False}


def expert_cases() -> Iterator[Case]:
    """Every case: its name, what checks it, and with which arguments."""
    yield from router_cases()
    for how, tokens, tile in (("any", 1, 4096), ("any", 37, 32), ("the same", 20, 32), ("few", 9, 4096)):
        yield f"experts: placing {how}, {tokens} tokens", placing, (how, tokens, 11, 3, tile), {}
    fp32 = torch.float32
    for how, tokens in (("any", 1), ("any", 5), ("the same", 17), ("few", 16), ("the same", 64), ("any", 70)):
        yield f"experts: {how}, {tokens} tokens", experts, (how, tokens, fp32), {}
    yield "experts: more than a tile each", experts, ("the same", 150, fp32), {"sizes": (3, 16, 24, 2)}
    yield "experts: a tile of 128 rows", experts, ("the same", 140, fp32), {"sizes": (2, 16, 24, 2)}
    yield "experts: gelu", experts, ("any", 5, fp32), {"activation": "gelu_tanh"}
    yield "experts: many, whole tiles", experts, ("any", 3, fp32), {"sizes": (32, 32, 128, 4)}
    for dtype in DTYPES[1:]:
        yield f"experts: {dtype}", experts, ("any", 9, dtype), {}
    if HAS_FP8:
        sizes = {"sizes": (5, 144, 272, 2), "fp8": True}
        for how, tokens in (("any", 1), ("the same", 17), ("few", 40), ("any", 70)):
            yield f"experts: FP8, {how}, {tokens} tokens", experts, (how, tokens, fp32), {"fp8": True}
        yield "experts: FP8, several blocks", experts, ("any", 6, fp32), sizes
        small = {"sizes": (2, 16, 24, 2), "fp8": True}
        yield "experts: FP8, a tile of 128 rows", experts, ("the same", 140, fp32), small
        for dtype in DTYPES[1:]:
            yield f"experts: FP8, {dtype}", experts, ("any", 9, dtype), sizes
        for sizes_of in ((1, 64, 96), (3, 128, 300), (17, 400, 144), (40, 272, 40), (130, 256, 136)):
            for dtype in DTYPES:
                name = f"experts: blocks, {sizes_of}, {dtype}"
                yield name, block_products, (*sizes_of, dtype), {"bias": sizes_of[0] % 2 == 0}
        for dim in (40, 128, 1300):
            yield f"experts: groups of {dim}", groups, (3, dim, DTYPES[-1]), {}
            yield f"experts: groups of {dim}, activated", groups, (3, dim, fp32, "silu"), {}
