"""The noise of sampling: numbers that depend on a seed and a place in the text, and on nothing else."""

import numpy as np


def uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float64 in [0, 1), a pure function of (seed, position), both int64 arrays of one shape.

    Two rounds of the splitmix64 finaliser (Steele, Lea and Flood, OOPSLA 2014), one for each input.
    """
    return np.asarray((keys(seeds, positions) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def keys(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """uint64: as `uniform`, the bits themselves. A draw that needs more noise derives it from these."""
    with np.errstate(over="ignore"):
        state = _mix(seeds.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        return _mix(state + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))


def gumbel(row_keys: np.ndarray, vocab_size: int) -> np.ndarray:
    """float32 `[R, V]`: noise of the Gumbel distribution, a function of a row's key, uint64 `[R]`, and the token."""
    with np.errstate(over="ignore", divide="ignore"):
        tokens = np.arange(1, vocab_size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        u = _mix(row_keys[:, None] + tokens).astype(np.float64) * 2.0**-64
        return np.asarray(-np.log(np.maximum(-np.log1p(-u), 1e-37)), dtype=np.float32)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def derive_seed(seed: int, index: int) -> int:
    """The seed of choice `index` of a request: `seed` itself for the first, else one mixed from both."""
    if index == 0:
        return seed
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(np.array([seed], dtype=np.int64).astype(np.uint64)) + np.uint64(index))
    return int(mixed.astype(np.int64)[0])
