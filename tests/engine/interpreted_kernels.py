"""The cases of `kernel_cases` under Triton's interpreter: `python -m tests.engine.interpreted_kernels`.

Prints a line of JSON for each case: its name, and what is wrong with it or null. It is a process of its own, because
Triton reads TRITON_INTERPRET when it is imported.
"""

import json
import os
import sys
import traceback
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

from triton.runtime import interpreter

from tests.engine.kernel_cases import cases

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_for_numpy(tensor: Any, scope: Any) -> None:
    """Triton 3.6's interpreter makes loop bounds of arrays in a way that NumPy 2.4 no longer allows."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_tensor_for_numpy


def main() -> int:
    """Run all."""
    for name, check, arguments, options in cases():
        try:
            check(*arguments, **options)
            problem = None
        except Exception:
            problem = traceback.format_exc()[-1500:]
        print(json.dumps([name, problem]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
