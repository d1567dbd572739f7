"""What is played at length by `make soak` alone, since the time of a change's tests is short."""

import os
from typing import Any

import pytest

SOAK = bool(os.environ.get("HEADRACE_SOAK"))


def marked_for_soak(*values: Any) -> Any:
    """Parameters of a test that are left to `make soak`."""
    skip = pytest.mark.skipif(not SOAK, reason="played under HEADRACE_SOAK=1, by make soak")
    return pytest.param(*values, marks=[pytest.mark.soak, skip])
