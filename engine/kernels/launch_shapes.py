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
    """Whether a sequence may have more queries than one."""
    is_latent: bool = False
    """Whether values are the first numbers of keys; the heads of the group may then be taken in several parts."""
    kv_bytes: int = 2
    """Of a number in the cache. Four are those of fp32, which matrix units do not take as they are, and of any cache
    whose keys meet queries in fp32."""


def launch_key(dim: int, group: int, *, is_prompt: bool, is_latent: bool = False, kv_bytes: int = 2) -> LaunchKey:
    """The key for heads `dim` wide."""
    return LaunchKey(1 << (dim - 1).bit_length(), group, is_prompt, is_latent, kv_bytes)


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
    """One that spills nothing on any supported GPU (tests/engine/kernels/built_kernels.py shows what it comes to).

    Of decoding rows several programs share a processor, and one reads while another computes: with three stages the
    numbers of the block table are there before they are needed, and a tile of keys and one of values. For prompts
    what counts are instructions for a score: the fewest have large tiles with few warps for their size, as far as there
    are registers.
    """
    rows, wide = smallest_rows(key.group), key.dim_pad > 128
    if key.is_latent:
        if key.kv_bytes == 4:
            return LaunchShape(SMALLEST_ROWS, 16, 8, 2)
        return LaunchShape(32 if key.is_prompt or key.group > SMALLEST_ROWS else SMALLEST_ROWS, 32, 8, 3)
    if key.kv_bytes == 4:
        narrow = key.dim_pad < 128
        return LaunchShape(max(rows, 32 if key.is_prompt and narrow else 0), 32 if narrow else 16, 8, 1)
    if key.is_prompt:
        return LaunchShape(max(rows, 64 if wide else 128), 64 if key.dim_pad < 128 else 32, 8, 3)
    return LaunchShape(rows, 32 if wide else 64, 4, 2 if key.kv_bytes == 1 else 3)


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
    if key.kv_bytes == 4:
        options = [(rows, tile, 8, 2), (rows, 2 * tile, 8, 2), (rows, tile, 4, 1)]
    elif not key.is_prompt:
        # With three or four stages there is room for one tile of keys and one of values, with five for two of each.
        options = [(rows, tile, 8, 3), (rows, tile, 4, 2), (rows, tile, 4, 5), (rows, tile // 2, 4, 5),
                   (rows, 2 * tile, 4, 3), (rows, 2 * tile, 8, 3)]  # fmt: skip
    elif key.dim_pad <= 128:
        options = [(rows, 64, 8, 3), (64, 64, 4, 3), (rows, 64, 4, 3), (rows, 128, 8, 3), (rows, 32, 8, 3)]
    else:
        options = [(rows, 32, 8, 2), (rows, 64, 8, 3), (2 * rows, 32, 8, 3)]
    shapes = [LaunchShape(*option) for option in options if option[0] >= smallest_rows(key.group)]
    return list(dict.fromkeys([default, *shapes]))
