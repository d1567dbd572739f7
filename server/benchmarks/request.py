"""The body of one request of a load."""

import argparse
from collections.abc import Sequence
from typing import Any

from server.benchmarks.workload import Asked


def body_of(options: argparse.Namespace, asked: Asked, images: Sequence[str] = ()) -> dict[str, Any]:
    """A streamed chat request, about images at these addresses if there are any, which go to the last message."""
    messages = asked.messages
    if images:
        parts = [{"type": "image_url", "image_url": {"url": url}} for url in images]
        text = {"type": "text", "text": messages[-1]["content"]}
        messages = [*messages[:-1], messages[-1] | {"content": [*parts, text]}]
    body = {
        "model": options.model,
        "messages": messages,
        "max_tokens": asked.max_tokens,
        "temperature": options.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"ignore_eos": True} if options.ignore_eos else {}),
        **options.extra_body,
    }
    return {name: value for name, value in body.items() if value is not None}
