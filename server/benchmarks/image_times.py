"""Where the time to first token of requests with images goes, by the sums of the server's /metrics."""

import re
from typing import Any

from server.benchmarks.chat_stream import Endpoint

PARTS = {
    "fetch": "headrace_image_fetch_seconds_sum",
    "decode": "headrace_image_decode_seconds_sum",
    "encode": "headrace_image_encode_seconds_total",
}
"""Series by the part of which they are the sum; those of several models add up."""


def sums(metrics: str) -> dict[str, float]:
    """Seconds so far; empty where the server does not tell."""
    found: dict[str, float] = {}
    for part, series in PARTS.items():
        values = re.findall(rf"^{series}(?:\{{.*\}})? (\S+)$", metrics, re.MULTILINE)
        if values:
            found[part] = sum(map(float, values))
    return found if len(found) == len(PARTS) else {}


class ImageTimes:
    """What is spent on images from the moment this is made."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._before = sums(endpoint.metrics())

    def split(self, level: dict[str, Any]) -> dict[str, float] | None:
        """Milliseconds of the mean time to first token; None where the server does not tell.

        `prefill` is what is left: the prompt's computation, waiting, and the way there and back. Several clients'
        images are encoded one after another, and what one waits for another's is in there too.
        """
        after = sums(self._endpoint.metrics())
        if not self._before or not after or not level["requests"]:
            return None
        found = {part: 1000 * (after[part] - self._before[part]) / level["requests"] for part in PARTS}
        return found | {"prefill": level["ttft_mean_ms"] - sum(found.values())}
