"""Attention in pieces is the same attention, and stops between them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from engine.execution import pieces
from engine.execution.pieces import InPieces, piece_of
from engine.execution.slices import Slices


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_OPERATIONS", 4 * 2 * 200 * 16 * 70)


def heads(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 2, 200, 16, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["none", "all", "by query", "by key", "causal"])
def test_what_comes_out_is_the_same_to_the_bit(dtype: torch.dtype, kind: str) -> None:
    masks: dict[str, dict[str, Any]] = {
        "none": {}, "all": {"attn_mask": None}, "causal": {"is_causal": True},
        "by query": {"attn_mask": torch.rand(1, 1, 200, 200, generator=torch.Generator().manual_seed(1)) > 0.3},
        "by key": {"attn_mask": torch.arange(200)[None, None, None] < 150},
    }  # fmt: skip
    options = masks[kind] | {"scale": 0.3}
    stops: list[None] = []
    asked = heads(dtype)
    whole = F.scaled_dot_product_attention(*asked, **options)  # type: ignore[misc,arg-type]
    with InPieces(lambda: stops.append(None)):
        found = F.scaled_dot_product_attention(*asked, **options)  # type: ignore[misc,arg-type]
    assert torch.equal(found, whole)
    assert len(stops) == (0 if kind == "causal" else 3)


def test_small_ones_are_whole() -> None:
    query, key, _ = heads(torch.float32)
    assert piece_of(query, key) == 64 and piece_of(query, key[:, :, :2]) >= 200
    assert piece_of(query, key.repeat(1, 1, 1000, 1)) == 64, "not less than torch takes at a time"


def test_a_sliced_computation_stops_inside_an_attention() -> None:
    asked = heads(torch.float32)
    slices, number, found = Slices([], torch.device("cpu")), 0, None
    while found is None:
        found = slices.go_on(b"a", lambda: F.scaled_dot_product_attention(*asked), 0.0)
        number += 1
    assert number == 4 and torch.equal(found, F.scaled_dot_product_attention(*asked))
