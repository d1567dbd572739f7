"""Libraries of others lie here as they were fetched, with their licences, and call nobody."""

import hashlib
import json
import re

import pytest

from scripts import vendor
from tests.places import ROOT

VENDOR = ROOT / "server" / "playground" / "vendor"
LIBRARIES = json.loads((VENDOR / "libraries.json").read_text())
CALLS_OUT = re.compile(
    r"(?<![.\w])fetch\((?!\) *\{)|\b(window|self|globalThis)\.fetch\b|XMLHttpRequest|WebSocket\(|sendBeacon"
)
"""A parser may have a method of that name."""
FREE = {"MIT", "BSD-3-Clause", "Apache-2.0"}


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library["file"])
def test_a_library_is_the_version_that_the_list_names(library: dict[str, str]) -> None:
    content = (VENDOR / library["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == library["sha256"]
    assert library["licence"] in FREE
    assert "Copyright" in (VENDOR / library["licence_file"]).read_text()


def test_the_list_is_that_of_the_script_and_there_is_nothing_else() -> None:
    listed = [(one.file, one.package, one.version, one.path, one.licence) for one in vendor.LIBRARIES]
    keys = ("file", "package", "version", "path", "licence")
    assert listed == [tuple(library[key] for key in keys) for library in LIBRARIES]
    known = {"libraries.json"} | {library["file"] for library in LIBRARIES}
    known |= {library["licence_file"] for library in LIBRARIES}
    known |= {library["file"].removesuffix(".js") + ".d.ts" for library in LIBRARIES}
    assert {path.name for path in VENDOR.iterdir()} == known


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library["file"])
def test_a_library_imports_only_what_lies_beside_it(library: dict[str, str]) -> None:
    text = (VENDOR / library["file"]).read_text()
    for name in re.findall(r"""\b(?:import|export)\b[^;'"`]*\bfrom\s*["']([^"']+)["']""", text):
        assert (VENDOR / name).is_file() and name.startswith("./"), name
    assert "sourceMappingURL" not in text and not CALLS_OUT.search(text)
