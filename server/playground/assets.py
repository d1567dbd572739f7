"""The static files of the playground, as they are served: read once, hashed, compressed.

All files stand below one directory whose name is a hash over all of them, so that they may be cached for ever, and
modules can import one another by relative paths as they are written: nothing is built, what is read is what runs.
"""

import gzip
import hashlib
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PREFIX = "/playground/"
ENTRY = "app/main.js"
"""The module that the page starts."""
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".woff2": "font/woff2",
}
"""By suffix; files with others are not served."""
_SMALLEST_COMPRESSED = 512
_DIRECTORY = Path(__file__).resolve().parent
_STATIC_IMPORT = re.compile(r'(?:^|[;}*\s])from\s*"(\.[^"]+)"|^import\s*"(\.[^"]+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, ready to be sent."""

    body: bytes
    compressed: bytes | None
    """With gzip, where that is smaller."""
    media_type: str
    etag: str
    """Weak, since it stands for both forms."""

    @classmethod
    def of(cls, body: bytes, media_type: str) -> "Asset":
        """A file with this content."""
        # No time of compression in the head, so that equal files are equal bytes.
        compressed = gzip.compress(body, 9, mtime=0) if len(body) >= _SMALLEST_COMPRESSED else None
        if compressed is not None and len(compressed) >= len(body):
            compressed = None
        return cls(body, compressed, media_type, f'W/"{hashlib.sha256(body).hexdigest()[:32]}"')


@dataclass(frozen=True, slots=True)
class Assets:
    """The page, and the files it is made of by their paths on the server."""

    page: Asset
    files: Mapping[str, Asset]

    @property
    def paths(self) -> frozenset[str]:
        """Every address that is answered."""
        return frozenset({"/", *self.files})


@cache
def load_assets(directory: Path = _DIRECTORY) -> Assets:
    """Read the files. Raises `OSError` where the package is incomplete."""
    contents = dict(_read(directory))
    page = contents.pop("index.html").decode()
    digest = hashlib.sha256()
    for path in sorted(contents):
        digest.update(path.encode() + b"\0" + hashlib.sha256(contents[path]).digest())
    # Without the slash in front: the page may stand below a proxy's path.
    root = f"{PREFIX[1:]}{digest.hexdigest()[:16]}/"
    preloads = "\n".join(
        f'    <link rel="modulepreload" href="{root}{path}">' for path in first_modules(contents) if path != ENTRY
    )
    page = page.replace("ROOT/", root).replace("    <!-- PRELOADS -->", preloads)
    files = {
        f"/{root}{path}": Asset.of(body, MEDIA_TYPES[posixpath.splitext(path)[1]]) for path, body in contents.items()
    }
    return Assets(Asset.of(page.encode(), MEDIA_TYPES[".html"]), files)


def _read(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(directory.rglob("*")):
        if path.suffix in MEDIA_TYPES and path.is_file():
            yield path.relative_to(directory).as_posix(), path.read_bytes()


def first_modules(contents: Mapping[str, bytes]) -> list[str]:
    """The modules that the first view needs: what the entry imports, and what that imports in its turn.

    A browser would find each of them only after it has read what imports it. Imports at run time (`import(…)`) are of
    what is needed later. Raises `KeyError` for an import of what is not there.
    """
    found = [ENTRY]
    for path in found:  # grows meanwhile
        for match in _STATIC_IMPORT.finditer(contents[path].decode()):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1] or match[2]))
            if target not in contents:
                raise KeyError(f"{path} imports {target}, which is not there")
            if target not in found:
                found.append(target)
    return found
