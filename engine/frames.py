"""Messages through a pipe between a process and one that it started: each behind its length."""

import struct
from typing import IO

import msgspec

MAX_FRAME_BYTES = 512 * 1024 * 1024
HEADER = struct.Struct("<I")
"""A frame's length."""


def frame_of(message: msgspec.Struct) -> bytes:
    """A message as it crosses."""
    content = msgspec.msgpack.encode(message)
    return HEADER.pack(len(content)) + content


def write_message(stream: IO[bytes], message: msgspec.Struct) -> None:
    """Write one message with its length before it."""
    stream.write(frame_of(message))
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next message's bytes; None at the end, or where the stream holds no message."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    frame = stream.read(size) if size <= MAX_FRAME_BYTES else b""
    return frame if frame and len(frame) == size else None
