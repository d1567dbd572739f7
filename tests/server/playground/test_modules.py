"""The playground's rooms: which module may import which, and that each says what it is for."""

import posixpath
import re
from pathlib import Path

import pytest

from tests.places import ROOT

PLAYGROUND = ROOT / "server" / "playground"
ROOMS = re.findall(r"^\| `(app/[\w.]+)` \|", (PLAYGROUND / "README.md").read_text(), re.MULTILINE)
MODULES = sorted((PLAYGROUND / "app").rglob("*.js"))
IMPORT = re.compile(
    r'(?:^|\s)(?:import|export)\b[^;"\']*?\bfrom\s*"([^"]+)"|\bimport\("([^"]+)"\)|^import "([^"]+)"', re.M
)


def name_of(path: Path) -> str:
    return path.relative_to(PLAYGROUND).as_posix()


def room_of(name: str) -> str:
    return name if name in ROOMS else posixpath.dirname(name)


def imports_of(name: str, text: str) -> list[str]:
    """What a module imports, at its start or later, by paths below the playground."""
    found = [next(filter(None, match)) for match in IMPORT.findall(text)]
    return [posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) for path in found]


def test_the_page_lists_every_room() -> None:
    assert {room_of(name_of(path)) for path in MODULES} - set(ROOMS) == set()
    assert ROOMS[0] == "app/main.js" and len(ROOMS) == len(set(ROOMS))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_downward_and_says_what_it_is_for(path: Path) -> None:
    name, text = name_of(path), path.read_text()
    assert text.startswith("/**"), "a module begins with what it is for"
    assert text.count("\n") <= 320
    for target in imports_of(name, text):
        assert (PLAYGROUND / target).is_file(), target
        if target.startswith("vendor/"):
            continue
        assert ROOMS.index(room_of(target)) >= ROOMS.index(room_of(name)), f"{name} imports {target} above it"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_makes_html_of_text(path: Path) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySet|\beval\(|new Function|cssText"
    assert not re.search(forbidden, path.read_text())


def test_the_check_can_fail() -> None:
    assert imports_of("app/core/a.js", 'import {\n  b,\n} from "../view/b.js";\nimport("./c.js");\n') == [
        "app/view/b.js",
        "app/core/c.js",
    ]
