"""Which linears multiply few rows by our own kernels: by made-up times, under Triton's interpreter."""

import os
import subprocess
import sys

from tests.places import ROOT

CHECK = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from torch import nn
import tests.engine.kernels.interpreted_kernels
from engine.kernels.triton_linear import shapes_for
from engine.models.small_products import SmallProduct, measure

LINEARS = [nn.Linear(48, 40) for _ in range(3)]
SEEN = []

def timer(seconds):
    def timed(works):
        SEEN.append(len({work.args[1].data_ptr() for work in works}))
        works[0]()
        return seconds(works[0])
    return timed

def is_ours(work):
    return work.func.__name__ == "small_product"

with torch.inference_mode():
    never = measure(LINEARS, timer(lambda work: 1.0))
    assert never == {1: None, 8: None}, never
    assert set(SEEN) == {3}, "one weight after another"
    third = shapes_for(1)[2]
    chosen = measure(LINEARS, timer(lambda work: 0.5 if is_ours(work) and work.args[3] == third else 1.0))
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
print("right")
"""


def test_the_faster_serves_and_all_say_the_same() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHECK]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout.splitlines()[-1:] == ["right"], done.stderr[-3000:]
