"""Fetch the libraries of the playground's pages from npm: `python -m scripts.vendor`.

Writes `server/playground/vendor/`: the files, their licences, and `libraries.json` with the version and hash of each,
to which `tests/server/playground/test_vendor.py` holds what lies there. Nothing is changed but two things: names of
packages in import statements become the paths of our files, since a strict policy allows no import map; and the
comments that name source maps go, which are not shipped.
"""

import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

VENDOR = Path(__file__).resolve().parent.parent / "server" / "playground" / "vendor"
IMPORTS = {
    "preact": "./preact.js",
    "preact/hooks": "./preact-hooks.js",
    "@preact/signals-core": "./signals-core.js",
}

IMPORT = re.compile(r"""(\b(?:import|export)\b[^;'"`]*)\bfrom\s*"([^"./][^"]*)\"""")


@dataclass(frozen=True, slots=True)
class Library:
    """One file of one package: `path` in the package becomes `file` here."""

    file: str
    package: str
    version: str
    path: str
    licence: str
    types: str = ""
    """What TypeScript calls it, if not by the package's name."""
    has_default: bool = False
    """Whether it exports a default."""


LIBRARIES = (
    Library("preact.js", "preact", "11.2.0", "dist/preact.mjs", "MIT"),
    Library("preact-hooks.js", "preact", "11.2.0", "hooks/dist/hooks.mjs", "MIT", "preact/hooks"),
    Library("signals-core.js", "@preact/signals-core", "1.14.5", "dist/signals-core.mjs", "MIT"),
    Library("signals.js", "@preact/signals", "2.11.4", "dist/signals.mjs", "MIT"),
    Library("marked.js", "marked", "18.2.1", "lib/marked.esm.js", "MIT"),
    Library("temml.js", "temml", "0.13.5", "dist/temml.mjs", "MIT", has_default=True),
)


def main() -> int:
    """Fetch every package once and write its files."""
    VENDOR.mkdir(exist_ok=True)
    for old in VENDOR.iterdir():
        old.unlink()
    entries = []
    with tempfile.TemporaryDirectory() as scratch:
        for library in LIBRARIES:
            package = _fetched(library, Path(scratch))
            text = _linked((package / library.path).read_text(encoding="utf-8"))
            (VENDOR / library.file).write_text(text, encoding="utf-8")
            named = library.types or library.package
            types = f'export * from "{named}";\n'
            if library.has_default:
                types += f'export {{ default }} from "{named}";\n'
            (VENDOR / library.file).with_suffix(".d.ts").write_text(types, encoding="utf-8")
            licence = f"LICENSE.{library.package.replace('@', '').replace('/', '-')}.txt"
            (VENDOR / licence).write_bytes((package / "LICENSE").read_bytes())
            entries.append(
                {
                    "file": library.file,
                    "package": library.package,
                    "version": library.version,
                    "path": library.path,
                    "licence": library.licence,
                    "licence_file": licence,
                    "sha256": hashlib.sha256(text.encode()).hexdigest(),
                }
            )
    (VENDOR / "libraries.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    return 0


def _fetched(library: Library, scratch: Path) -> Path:
    """The unpacked package."""
    name = f"{library.package}@{library.version}"
    directory = scratch / re.sub(r"\W", "-", name)
    if not directory.exists():
        directory.mkdir()
        subprocess.run(["npm", "pack", "--silent", name], cwd=directory, check=True, stdout=subprocess.DEVNULL)  # noqa: S607
        with tarfile.open(next(directory.glob("*.tgz"))) as archive:
            archive.extractall(directory, filter="data")
    return directory / "package"


def _linked(text: str) -> str:
    """A module whose imports are paths of ours."""
    text = re.sub(r"\n?//# sourceMappingURL=\S*", "", text)
    return IMPORT.sub(lambda found: f'{found[1]}from"{IMPORTS[found[2]]}"', text)


if __name__ == "__main__":
    raise SystemExit(main())
