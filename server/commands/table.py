"""Tables on a terminal."""

from collections.abc import Sequence
from typing import TextIO


def write_table(rows: Sequence[Sequence[str]], out: TextIO) -> None:
    """Write rows of equal length in columns; the first is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        out.write(line.rstrip() + "\n")


def readable_size(size: float) -> str:
    """Bytes of files, and of GPUs as they are sold, in the unit that suits them."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def readable_memory(num_bytes: float) -> str:
    """Bytes of memory, in the units that settings take and the log has."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"
