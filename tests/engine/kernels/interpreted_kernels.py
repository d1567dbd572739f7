"""The cases of `kernel_cases` under Triton's interpreter.

    python -m tests.engine.kernels.interpreted_kernels PART PARTS

Runs every PARTS-th case from the PART-th on. Prints a line of JSON for each case: its name, and what is wrong with it
or null. It is a process of its own, because Triton reads TRITON_INTERPRET when it is imported.
"""

import itertools
import json
import os
import sys
import traceback
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from tests.engine.kernels.kernel_cases import cases

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_for_numpy(tensor: Any, scope: Any) -> None:
    """Triton 3.6's interpreter makes loop bounds of arrays in a way that NumPy 2.4 no longer allows."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_tensor_for_numpy

_convert_float = interpreter._convert_float


def _convert_e4m3_as_torch_does(values: Any, source: Any, target: Any, rounding: Any) -> Any:
    """Triton 3.6's interpreter rounds ties to e4m3 away from zero, and knows no NaN there."""
    if target == tl.float8e4nv and source == tl.float32:
        wide = torch.from_numpy(np.array(values, dtype=np.float32))
        return wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    if source == tl.float8e4nv:
        wide = torch.from_numpy(np.array(values, dtype=np.uint8)).view(torch.float8_e4m3fn).float()
        return wide.numpy() if target == tl.float32 else wide.half().numpy()
    return _convert_float(values, source, target, rounding)


interpreter._convert_float = _convert_e4m3_as_torch_does


def main() -> int:
    """Run this part."""
    part, parts = int(sys.argv[1]), int(sys.argv[2])
    for name, check, arguments, options in itertools.islice(cases(), part, None, parts):
        try:
            check(*arguments, **options)
            problem = None
        except Exception:
            problem = traceback.format_exc()[-1500:]
        print(json.dumps([name, problem]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
