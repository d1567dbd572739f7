"""Engines whose model several processes share, for tests in one process, which has one process group at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.device.ranks import leave
from engine.engine import Engine
from tests.engine.test_oracle import make_engine


@contextmanager
def shared_engine(directory: Path, ranks: int = 2, **options: object) -> Iterator[Engine]:
    """An engine of so many ranks on the CPU; its processes are gone afterwards."""
    engine = make_engine(directory, tensor_parallel=ranks, **options)
    try:
        yield engine
    finally:
        engine.close()
        leave()
