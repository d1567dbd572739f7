"""Files that nobody should send as images, by kind, each of which is a 400.

What `tests/server/images` tries on the rooms by themselves, with words for each, is here once more as it is sent.
"""

import base64
import gzip
import io
import itertools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.server.images.test_decode import BOMBS, NOT_READ, chunk, png_of

BMP_HEAD = struct.Struct("<2sIHHIIiiHHIIiiII")
SAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {}),
    "palette png": ("PNG", {"mode": "P"}),
    "deep png": ("PNG", {"mode": "I;16"}),
    "jpeg": ("JPEG", {}),
    "progressive jpeg": ("JPEG", {"progressive": True}),
    "ink jpeg": ("JPEG", {"mode": "CMYK"}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "lossless webp": ("WEBP", {"lossless": True}),
    "bmp": ("BMP", {}),
}
CUTS: tuple[int | float, ...] = (1, 3, 7, 12, 20, 30, 0.25, 0.5, 0.75, 0.9)
"""Bytes from the start, and shares of the whole."""


def noise(mode: str = "RGB") -> Image.Image:
    """48 x 40 pixels."""
    pixels = np.random.default_rng(5).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return (
        Image.fromarray(pixels).convert("L").convert(mode) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    )


def written(format: str, mode: str = "RGB", **options: Any) -> bytes:
    """A good image."""
    out = io.BytesIO()
    noise(mode).save(out, format, **options)
    return out.getvalue()


def truncated() -> Iterator[tuple[str, bytes]]:
    """In the signature, the header, tables and at several places of the pixels, in every form of every format."""
    for name, (format, options) in SAMPLES.items():
        content = written(format, **options)
        for cut in CUTS:
            yield f"{name} cut at {cut}", content[: cut if isinstance(cut, int) else int(len(content) * cut)]


def spoilt() -> Iterator[tuple[str, bytes]]:
    """Headers that say what cannot be."""
    signature, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))

    def png(*fields: int) -> bytes:
        return signature + chunk(b"IHDR", struct.pack(">IIBBBBB", *fields)) + pixels + end

    yield "png without width", png(0, 8, 8, 2, 0, 0, 0)
    yield "png without height", png(8, 0, 8, 2, 0, 0, 0)
    yield "png of three bits", png(8, 8, 3, 2, 0, 0, 0)
    yield "png of colour nine", png(8, 8, 8, 9, 0, 0, 0)
    yield "png of two gigapixels a side", png(2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    yield "png of negative sides", png(2**32 - 1, 2**32 - 1, 8, 2, 0, 0, 0)
    yield "png without pixels", signature + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)) + end
    yield "png of no deflate", png_of(8, 8).replace(pixels, chunk(b"IDAT", b"\xff" * 40))
    yield "png with a wrong sum", png_of(8, 8)[:29] + b"\0\0\0\0" + png_of(8, 8)[33:]
    yield "png with a chunk of 2 GiB", signature + struct.pack(">I", 2**31 - 1) + b"IHDR" + b"\0" * 64
    jpeg = written("JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    yield "jpeg without height", jpeg[:frame] + b"\0\0" + jpeg[frame + 2 :]
    yield "jpeg of 65,535 a side", jpeg[:frame] + b"\xff" * 4 + jpeg[frame + 4 :]
    yield "jpeg of nine components", jpeg[: frame + 4] + b"\x09" + jpeg[frame + 5 :]
    yield "jpeg without tables", jpeg.replace(b"\xff\xc4", b"\xff\xfe").replace(b"\xff\xdb", b"\xff\xfe")
    yield "jpeg of markers alone", b"\xff\xd8\xff" + b"\xff\xd0" * 2000 + b"\xff\xd9"
    yield "gif without width", b"GIF89a" + struct.pack("<HHBBB", 0, 8, 0, 0, 0) + b";"
    yield "gif without a frame", b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b";"
    image = b"," + struct.pack("<HHHHB", 0, 0, 8, 8, 0)
    yield "gif of wide codes", b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + image + b"\x0d\x02\xff\xff\0;"
    yield "gif of comments alone", b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"!\xfe\x01x\0" * 5000
    webp = written("WEBP")
    yield "webp of another size", webp[:4] + struct.pack("<I", 2**31) + webp[8:]
    yield "webp of noise", webp[:20] + bytes(range(256)) * 4
    for name, fields in {
        "bmp of 64 bits": (8, 8, 1, 64, 0),
        "bmp of a jpeg": (8, 8, 1, 24, 4),
        "bmp without width": (0, 8, 1, 24, 0),
        "bmp of negative width": (-8, 8, 1, 24, 0),
        "bmp of the least height": (8, -(2**31), 1, 24, 0),
    }.items():
        yield name, BMP_HEAD.pack(b"BM", 254, 0, 0, 54, 40, *fields, 200, 0, 0, 0, 0) + b"\0" * 200


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that want to be large."""
    yield from BOMBS.items()
    zeros = zlib.compress(b"\0" * 100_000_000)
    yield "png profile", png_of(8, 8, chunk(b"iCCP", b"x\0\0" + zeros))
    yield "png international text", png_of(8, 8, chunk(b"iTXt", b"x\0\1\0\0\0" + zeros))
    yield "png of 41 megapixels", png_of(6410, 6400)
    yield "png of a long side", png_of(16_385, 1)
    yield "gif of a screen and a larger frame", BOMBS["gif frame"].replace(b"GIF89a", b"GIF87a")
    big = struct.pack("<I", (16_383 - 1) | (16_383 - 1) << 14)
    yield (
        "lossless webp",
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 18) + b"\x2f" + big + b"\0" * 13,
    )
    yield (
        "bmp of runs",
        BMP_HEAD.pack(b"BM", 100, 0, 0, 54, 40, 16_000, 16_000, 1, 8, 1, 46, 0, 0, 0, 0) + b"\xff\0" * 23,
    )
    jpeg = written("JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    yield "jpeg of 250 megapixels", jpeg[:frame] + struct.pack(">HH", 16_000, 16_000) + jpeg[frame + 4 :]


def others() -> Iterator[tuple[str, bytes]]:
    """What is no image, or none that is read."""
    yield from ((name, content) for name, content in NOT_READ.items() if content)
    for format in ("TIFF", "ICO", "PPM", "PCX", "TGA", "SGI", "JPEG2000", "AVIF", "DDS"):
        if format in Image.registered_extensions().values() and format in Image.SAVE:
            yield format, written(format)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("x.png", written("PNG"))
    yield from {
        "zip": packed.getvalue(),
        "gzip": gzip.compress(written("PNG")),
        "svg behind a declaration": b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        "html": b"<html><body><img src=x onerror=alert(1)></body></html>",
        "script": b"#!/bin/sh\ntouch /tmp/x\n",
        "json": b'{"image": "x"}',
        "text": "ein Bild".encode("utf-16"),
        "program": b"\x7fELF" + b"\0" * 60,
        "pickle": b"cbuiltins\nopen\n(V/tmp/x\nVw\ntR.",
        "video": b"\0\0\0\x20ftypisom" + b"\0" * 40,
        "xbm": b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0};",
        "postscript in jpeg's name": b"%!PS\n(x) run",
        "an image behind text": b"x" + written("PNG"),
        "zeros": b"\0" * 5000,
        "ones": b"\xff" * 5000,
        "wmf": b"\xd7\xcd\xc6\x9a" + b"\0" * 40,
        "base64 of base64": base64.b64encode(written("PNG")),
    }.items()


def files() -> list[tuple[str, bytes]]:
    """All of the above, each once."""
    found = itertools.chain(truncated(), spoilt(), bombs(), others())
    return list({content: (name, content) for name, content in found}.values())


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


DATA_URLS = [
    "data:image/png,abc",
    "data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg'/>",
    "data:text/html,<img src=x>",
    "data:;base64,",
    "data:image/png;base64",
    "data:image/png;base64,====",
    "data:image/png;base64,iVBORw0KGgo\u00e9",
    "data:image/png;base64,%",
    "data:image/png;base64,data:image/png;base64,iVBORw0KGgo=",
    "data:image/png;base64;base64,iVBORw0KGgo=,",
    "blob:https://example.org/1",
    "about:blank",
]
