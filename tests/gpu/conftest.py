"""Tests on one GPU, one after another: what one leaves behind must not take the next one's memory."""

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def given_back() -> Iterator[None]:
    """Free what a test's engines held, which may hold each other."""
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
