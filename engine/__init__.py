"""The Headrace engine: tokens in, tokens out, batched continuously over paged KV blocks.

Knows no text, no HTTP and no JSON of the API. `server` imports this package; it imports nothing of `server`.
"""

import importlib.metadata


def version() -> str:
    """The installed version of Headrace."""
    try:
        return importlib.metadata.version("headrace")
    except importlib.metadata.PackageNotFoundError:
        return "unreleased"
