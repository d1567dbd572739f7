"""What only a GPU can tell: kernels in bf16 against their references, and engines on them against `generate`.

`make gpu` runs these; without a GPU they are skipped.
"""

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

if torch.cuda.is_available():
    from tests.engine.kernels.kernel_cases import cases

    CASES = {name: (check, arguments, options) for name, check, arguments, options in cases()}
else:
    CASES = {}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    check, arguments, options = CASES[name]
    check(*arguments, **options)
