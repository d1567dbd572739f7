"""Whether a Python can run `make gpu`, for the Makefile.

    PYTHON -m scripts.gpu_python           exit code 0 if it has torch that sees a GPU, and pytest; says nothing
    PYTHON -m scripts.gpu_python --check   exit code 0 if it has all that is needed, else one line says what is missing

Imports nothing of the project, so that it runs anywhere.
"""

import importlib.util
import sys
from collections.abc import Iterable, Sequence

NEEDED = ("torch", "triton", "transformers", "tokenizers", "safetensors", "accelerate", "numpy", "msgspec", "psutil",
          "PIL", "pytest", "pytest_timeout")  # fmt: skip
"""Modules without which there is nothing to run."""
PARTS = {
    "llguidance": "constrained rows",
    "outlines_core": "constrained rows",
    "zmq": "the start of a server",
    "fastapi": "the start of a server",
    "uvicorn": "the start of a server",
    "pydantic": "the start of a server",
    "h11": "the start of a server",
    "jinja2": "the start of a server",
    "yaml": "the start of a server",
}
"""Modules without which a part is left out, and which part."""


def missing(names: Iterable[str]) -> list[str]:
    """Those of the modules that cannot be found."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def sees_a_gpu() -> bool:
    """Whether this Python has torch with a GPU, and pytest."""
    if missing(["torch", "pytest"]):
        return False
    import torch

    return bool(torch.cuda.is_available())


def main(arguments: list[str] | None = None, needed: Sequence[str] = NEEDED) -> int:
    """See the module's docstring."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--check" not in arguments:
        return 0 if sees_a_gpu() else 1
    absent = missing(needed)
    if absent:
        print(f"{sys.executable} lacks {', '.join(absent)}: docs/performance.md says what make gpu needs",
              file=sys.stderr)  # fmt: skip
        return 1
    left_out = missing(PARTS)
    if left_out:
        parts = sorted({PARTS[name] for name in left_out})
        print(f"left out for want of {', '.join(left_out)}: {', '.join(parts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
