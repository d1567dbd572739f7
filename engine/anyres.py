"""How many tokens an image has that is laid over tiles of one size and cut to its own shape (LLaVA-OneVision)."""

import math
from collections.abc import Sequence


def choose_canvas(height: int, width: int, canvases: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Of the canvases (height, width), the one that shows most of an image, and of those the one that wastes least."""

    def worth(canvas: Sequence[int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, -(canvas[0] * canvas[1] - shown)

    best = max(canvases, key=worth)
    return best[0], best[1]


def anyres_tokens(
    height: int, width: int, *, tile: int, side: int, canvases: Sequence[Sequence[int]], max_tiles: int
) -> int:
    """Tokens of a whole image of that size: of the image as one tile, then of its rows, each with one for its end.

    `tile` is the side of a tile in pixels, `side` in tokens. Rows that lie on the canvas beyond the image are cut off;
    more than `max_tiles` tiles of tokens are thinned out.
    """
    canvas = choose_canvas(height, width, canvases)
    rows, columns = canvas[0] // tile * side, canvas[1] // tile * side
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    ratio = math.sqrt(rows * columns / (max_tiles * side**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return side**2 + rows * (columns + 1)
