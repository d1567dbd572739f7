"""Which linears multiply few rows by our own kernels: by made-up times, under Triton's interpreter."""

import os
import subprocess
import sys

from tests.places import ROOT

CHECK = """
import os
os.environ["TRITON_INTERPRET"] = "1"
from unittest import mock
import torch
from torch import nn
import tests.engine.kernels.interpreted_kernels
from engine.kernels.triton_fp8 import FEW_ROWS_SHAPES
from engine.kernels.triton_linear import shapes_for
from engine.models.fp8 import Fp8Linear
from engine.models import small_products
from engine.models.small_products import SmallProduct, measure

LINEARS = [nn.Linear(48, 40) for _ in range(3)]
SEEN = []

def timer(seconds):
    def timed(works):
        SEEN.append(len({id(work.args[0]) if is_ours(work) else id(work.func) for work in works}))
        works[0]()
        return seconds(works[0])
    return timed

def is_ours(work):
    return getattr(work.func, "__name__", "") == "_product"

with torch.inference_mode():
    never = measure(LINEARS, timer(lambda work: 1.0))
    assert never == {1: None, 8: None}, never
    assert set(SEEN) == {3}, "one weight after another"
    third = shapes_for(1)[2]
    chosen = measure(LINEARS, timer(lambda work: 0.5 if is_ours(work) and work.args[2] == third else 1.0))
    assert chosen == {1: third, 8: None}, chosen

    def broken(work):
        if is_ours(work):
            raise RuntimeError("out of resource")
        return 1.0

    assert measure(LINEARS, timer(broken)) == {1: None, 8: None}
    for measured in ({1: third, 8: None}, {1: None, 8: shapes_for(8)[0]}, {1: third, 8: shapes_for(8)[0]}):
        product = SmallProduct(LINEARS[0], measured)
        for rows in (1, 2, 16, 17):
            x = torch.randn(1, rows, 48)
            torch.testing.assert_close(product(x), LINEARS[0](x))
    assert str(third) in SmallProduct(LINEARS[0], {1: third, 8: None}).numerics

    class Told:
        # A rank that leads, or one that hears of what another has measured.

        def __init__(self, heard):
            self.leads, self.heard = heard is None, heard

        def agreed(self, value, kind):
            assert (value is None) != self.leads
            return self.heard or value

    def lost(works):
        raise RuntimeError("out of memory")

    assert small_products._agreed(LINEARS, lost, Told(None)) == {1: None, 8: None}, "the others wait to hear of it"
    with mock.patch.object(small_products, "small_product", wraps=small_products.small_product) as built:
        assert small_products._agreed(LINEARS, lost, Told({1: third, 8: None})) == {1: third, 8: None}
        assert built.call_count == 1, "where nothing is measured the kernel is built all the same"

    quantized = [Fp8Linear.quantized(torch.randn(48, 64), None) for _ in range(3)]
    second = FEW_ROWS_SHAPES[1]

    def shape_of(work):
        return work.args[2] if is_ours(work) else None

    def timed(works):
        works[0]()
        return 0.5 if shape_of(works[0]) == second else 1.0

    assert measure(quantized, timed) == {1: second, 8: second}
    assert measure(quantized, lambda works: 1.0) == {1: None, 8: None}
    with mock.patch.object(small_products, "few_rows_product", lambda x, *rest: torch.zeros(len(x.numbers), 48)):
        assert measure(quantized, timed) == {1: None, 8: None}, "what is wrong is not chosen"
    for few_rows in ({1: second, 8: None}, {1: None, 8: second}):
        before, linear = quantized[0], Fp8Linear(quantized[0].weight, quantized[0].scale, None)
        linear.few_rows = few_rows
        assert str(second) in linear.numerics and not before.numerics
        for rows in (1, 2, 16, 17):
            x = torch.randn(1, rows, 64)
            torch.testing.assert_close(linear(x), before(x))
print("right")
"""


def test_the_faster_serves_and_all_say_the_same() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHECK]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout.splitlines()[-1:] == ["right"], done.stderr[-3000:]
