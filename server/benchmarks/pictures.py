"""Images of a wanted size, no two alike, for servers of models that see."""

import base64
import io
import random

QUALITY = 90


def make_picture(number: int, size: tuple[int, int], *, seed: int = 0) -> str:
    """A data URL of image `number`: a JPEG of soft colours, about as many bytes as a photograph of that size has."""
    from PIL import Image

    coarse = max(1, size[0] // 8), max(1, size[1] // 8)
    pixels = random.Random(f"{seed} {number} picture").randbytes(3 * coarse[0] * coarse[1])
    out = io.BytesIO()
    Image.frombytes("RGB", coarse, pixels).resize(size).save(out, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
