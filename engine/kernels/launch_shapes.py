"""How the attention kernel is laid out over a GPU: by default, or as it was measured best on the GPU at hand."""

from dataclasses import dataclass

SMALLEST_ROWS = 16
"""Fewer rows than this a matrix unit does not take."""


@dataclass(frozen=True, slots=True)
class LaunchShape:
    """One way to launch the kernel."""

    rows: int
    """Queries times heads of a group that a program takes."""
    tile: int
    """Keys that it takes at once."""
    num_warps: int
    num_stages: int
    """Tiles that are under way at a time."""

    def __str__(self) -> str:
        return f"{self.rows}x{self.tile}/{self.num_warps}/{self.num_stages}"


@dataclass(frozen=True, slots=True)
class LaunchKey:
    """What a shape is good for."""

    dim_pad: int
    """Width of a head, as a power of two."""
    group: int
    """Query heads of a KV head."""
    is_prompt: bool
    """Whether a sequence has more queries than the smallest tile of rows holds."""
    is_latent: bool = False
    """Whether values are the first numbers of keys; the heads of the group may then be taken in several parts."""


def launch_key(dim: int, group: int, *, is_prompt: bool, is_latent: bool = False) -> LaunchKey:
    """The key for heads `dim` wide."""
    return LaunchKey(1 << (dim - 1).bit_length(), group, is_prompt, is_latent)


_measured: dict[LaunchKey, LaunchShape] = {}


def use_shape(key: LaunchKey, shape: LaunchShape | None) -> None:
    """From now on launch this process's kernels so; None goes back to the default."""
    if shape is None:
        _measured.pop(key, None)
    else:
        _measured[key] = shape


def launch_shape(key: LaunchKey) -> LaunchShape:
    """The shape to launch with: the measured one, if there is one."""
    return _measured.get(key) or default_shape(key)


def default_shape(key: LaunchKey) -> LaunchShape:
    """One that spills nothing on any supported GPU, and whose keys and values are on their way before they are used.

    With three stages the block tables, keys and values of later tiles are fetched while one is computed; a program that
    decodes then holds so little that several of them share a processor.
    """
    if key.is_latent:
        return LaunchShape(32 if key.is_prompt or key.group > SMALLEST_ROWS else SMALLEST_ROWS, 32, 8, 3)
    rows, wide = smallest_rows(key.group), key.dim_pad > 128
    if key.is_prompt:
        return LaunchShape(max(rows, 64), 64 if key.dim_pad == 128 else 32, 8, 3)
    return LaunchShape(rows, 32 if wide else 64, 4, 3)


def smallest_rows(group: int) -> int:
    """Rows of the smallest tile: a power of two that holds whole groups of heads."""
    return max(SMALLEST_ROWS, 1 << (group - 1).bit_length())


def candidates(key: LaunchKey) -> list[LaunchShape]:
    """Shapes worth trying, the default first, then the likelier ones; some may not fit a GPU."""
    default = default_shape(key)
    rows, tile = default.rows, default.tile
    if key.is_latent:
        # The more heads a program takes, the fewer times latents are read, but its sums fill registers, of which there
        # are enough for 64 on Hopper. With five stages two tiles of latents are there, for which older GPUs lack room.
        options = [(64, 32, 8, 3), (32, 32, 8, 5), (64, 32, 8, 5)]
        if not key.is_prompt:
            options += [(16, 32, 8, 5), (16, 32, 8, 3)]
        return list(dict.fromkeys([default, *(LaunchShape(*option) for option in options)]))
    if not key.is_prompt:
        options = [(rows, tile, 8, 3), (rows, tile, 4, 2), (rows, tile, 4, 4), (rows, 2 * tile, 4, 3),
                   (rows, 2 * tile, 8, 3)]  # fmt: skip
    elif key.dim_pad <= 128:
        options = [
            (2 * rows, 64, 8, 3),
            (rows, 32, 8, 3),
            (rows, 64, 4, 3),
            (2 * rows, 64, 4, 3),
            (2 * rows, 128, 8, 3),
            (rows, 32, 4, 3),
        ]
    else:
        options = [(rows, 32, 8, 2), (rows, 64, 8, 3), (2 * rows, 32, 8, 3)]
    shapes = [LaunchShape(*option) for option in options if option[0] >= smallest_rows(key.group)]
    return list(dict.fromkeys([default, *shapes]))
