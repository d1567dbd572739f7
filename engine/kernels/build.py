"""Building the C sources beside this module with the system's compiler, once per machine and source, into the cache."""

import ctypes
import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from engine.cache import cache_dir

logger = logging.getLogger(__name__)

# Sums may be reordered, which vectorising them needs. -ffast-math would also make the process flush denormals.
FLAGS = (
    "-O3 -march=native -fopenmp -shared -fPIC -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math"
)
BUILD_SECONDS = 300


@cache
def built(name: str) -> ctypes.CDLL | None:
    """The library made of the source `name` here; None, with a logged reason, where that is not possible.

    Building takes some seconds at the first start. Without a compiler plain torch does the same work.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        logger.warning("no C compiler found: %s is done in plain torch, which is slower", name)
        return None
    try:
        return ctypes.CDLL(str(_build(Path(__file__).with_name(name), compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        logger.warning("%s could not be built, plain torch serves instead: %s", name, str(detail)[-2000:])
        return None


def _build(source: Path, compiler: str) -> Path:
    """Path of the shared library for this source, compiler and processor."""
    texts = [path.read_text() for path in _with_included(source)]
    key = hashlib.sha256("\n".join((*texts, compiler, FLAGS, _processor())).encode()).hexdigest()[:32]
    target = cache_dir() / "kernels" / f"{source.stem}-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        product = Path(scratch) / target.name
        command = [compiler, *FLAGS.split(), "-o", str(product), str(source), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_SECONDS)
        product.replace(target)  # whole or not at all, also when two processes build at once
    return target


def _with_included(source: Path) -> list[Path]:
    """A source and those beside it that it includes, itself at times."""
    found = [source]
    for path in found:
        for name in re.findall(r'^#include "(.+)"$', path.read_text(), re.MULTILINE):
            if source.with_name(name) not in found:
                found.append(source.with_name(name))
    return found


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))
