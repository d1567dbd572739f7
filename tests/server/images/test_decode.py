"""Images of every kind become the pixels a person sees; what is none, or too much, is refused in words."""

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from server.images.decode import FORMATS, DecodeError, ImageLimits, decode

LIMITS = ImageLimits(max_pixels=1_000_000, max_side=12_000)
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def written(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def halves(mode: str = "RGB", size: tuple[int, int] = (32, 16), colours: tuple[Any, Any] = (RED, BLUE)) -> Image.Image:
    """The first colour to the left, the second to the right."""
    image = Image.new(mode, size, colours[0])
    image.paste(colours[1], (size[0] // 2, 0, *size))
    return image


def ends(content: bytes) -> tuple[Any, Any, tuple[int, ...]]:
    """The colours at the left and right end, and the shape."""
    pixels = decode(content, LIMITS)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    return tuple(map(int, pixels[0, 0])), tuple(map(int, pixels[-1, -1])), pixels.shape[:2]


def test_pillow_is_one_whose_known_holes_are_closed() -> None:
    assert int(PIL.__version__.split(".")[0]) >= 13
    assert features.check("webp")


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_is_read(format: str) -> None:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    left, right, shape = ends(written(halves(), format, **options))
    assert np.allclose((left, right), (RED, BLUE), atol=3) and shape == (16, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_camera_s_orientation_is_followed(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(written(halves(), "PNG", exif=exif), LIMITS)
    assert pixels.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
    first = {1: RED, 2: BLUE, 3: BLUE, 4: RED, 5: RED, 6: RED, 7: BLUE, 8: BLUE}[orientation]
    assert tuple(pixels[0, 0]) == first


def test_what_is_transparent_is_white() -> None:
    clear = (0, 0, 0, 0)
    for mode, colours in (("RGBA", (clear, (255, 0, 0, 255))), ("LA", ((0, 0), (255, 255)))):
        assert ends(written(halves(mode, colours=colours)))[0] == WHITE
    half = ends(written(halves("RGBA", colours=((0, 0, 0, 128), (0, 0, 0, 255)))))
    assert half[0] == (127, 127, 127) and half[1] == (0, 0, 0)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (2, 0, 4, 4))
    for format in ("PNG", "GIF"):
        assert ends(written(palette, format, transparency=0))[:2] == (WHITE, RED)
    assert ends(written(halves(), "PNG", transparency=RED))[:2] == (WHITE, BLUE)


def test_grey_palette_bits_and_ink_are_converted() -> None:
    assert ends(written(halves("L", colours=(10, 200))))[:2] == ((10, 10, 10), (200, 200, 200))
    assert ends(written(halves("1", colours=(0, 1))))[:2] == ((0, 0, 0), WHITE)
    assert ends(written(halves().quantize(4)))[:2] == (RED, BLUE)
    ink = halves("CMYK", colours=((0, 255, 255, 0), (255, 255, 0, 0)))
    left, right, _ = ends(written(ink, "JPEG", quality=100, subsampling=0))
    assert np.allclose((left, right), (RED, BLUE), atol=4)


def test_sixteen_bits_are_not_cut_off() -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    pixels = decode(written(Image.fromarray(values)), LIMITS)
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255] and (pixels[..., 0] == pixels[..., 2]).all()


def test_of_animations_the_first_frame_is_seen() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    for format in ("GIF", "PNG", "WEBP"):
        content = written(
            frames[0],
            format,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if format == "WEBP" else {}),
        )
        assert ends(content)[0] == RED, format


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_thin_images_are_images(size: tuple[int, int]) -> None:
    assert ends(written(Image.new("RGB", size, RED)))[2] == (size[1], size[0])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG file that claims to be so large."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(chunks)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


BOMBS = {
    "png": png_of(10_000, 10_000),
    "png side": png_of(1, 20_000),
    "png text": png_of(8, 8, chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 200_000_000))),
    "gif": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0",
    "gif frame": b"GIF89a"
    + struct.pack("<HH", 8, 8)
    + b"\0\0\0,"
    + struct.pack("<HHHH", 0, 0, 60_000, 60_000)
    + b"\0\2\2L\1\0;",
    "bmp": b"BM"
    + struct.pack("<IHHI", 100, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "webp": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\0\xff\xff\0",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_header(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode(BOMBS[name], LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 80_000_000
    finally:
        tracemalloc.stop()


NOT_READ = {
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
    "html": b"<!doctype html>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "fits": b"SIMPLE  =                    T" + b" " * 2850,
    "empty": b"",
    "psd": b"8BPS\0\1" + b"\0" * 40,
    "pdf": b"%PDF-1.7\n",
    "heic": b"\0\0\0\x18ftypheic" + b"\0" * 20,
}


@pytest.mark.parametrize(
    "content", [*NOT_READ.values(), *(written(halves(), kind) for kind in ("TIFF", "ICO", "PPM", "PCX", "TGA"))]
)
def test_other_formats_are_not_opened(content: bytes) -> None:
    with pytest.raises(DecodeError, match="no image in a format"):
        decode(content, LIMITS)


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_image_is_refused(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    content = written(noise, format)
    for length in range(0, len(content) - 40, max(1, len(content) // 25)):
        with pytest.raises(DecodeError):
            decode(content[:length], LIMITS)


SAMPLES = [written(halves(), format) for format in FORMATS]


@settings(max_examples=300)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6),
)
def test_damaged_images_are_pixels_or_words(content: bytes, damage: list[tuple[int, bytes]]) -> None:
    spoilt = bytearray(content)
    for place, what in damage:
        spoilt[place % len(spoilt) : place % len(spoilt) + len(what)] = what
    try:
        assert decode(bytes(spoilt), ImageLimits(max_pixels=10_000, max_side=1000)).ndim == 3
    except DecodeError as error:
        assert "0x" not in str(error) and "/" not in str(error)
