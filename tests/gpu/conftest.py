"""Tests on one GPU, one after another: what one leaves behind must not take the next one's memory."""

import gc
import os
from collections.abc import Iterator

import pytest
import torch

STICKY = 70
"""Exit code of a worker whose GPU serves it no more."""


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    """Free what a test's engines held, which may hold each other."""
    yield
    gc.collect()
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        # An illegal access is with a process for good. One of several workers can end, and another takes the rest.
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(STICKY)
        raise
    torch.cuda.empty_cache()
