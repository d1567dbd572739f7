"""The direction of imports: the wings and modules of docs/architecture.md, in their order, and nothing else."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from tests.places import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("engine", "server")
DEVICE_LINE = "---- device line ----"

Room = tuple[str, str]
"""A wing, or the package for what is in none, and a module."""


def rooms(package: str) -> list[Room]:
    """The rooms of a package from the top, with the device line among them."""
    block = re.search(rf"<!-- rooms: {package} -->\n```\n(.*?)```", PAGE, re.DOTALL)
    assert block, f"docs/architecture.md lists no rooms of {package}"
    return parse_rooms(package, block[1])


def parse_rooms(package: str, text: str) -> list[Room]:
    """A line begins with a wing, or goes on with that of the line before it if it is indented."""
    listed: list[Room] = []
    wing = ""
    for line in text.splitlines():
        if line == DEVICE_LINE:
            listed.append((DEVICE_LINE, DEVICE_LINE))
            continue
        names = line.split()
        if not line.startswith(" "):
            wing, *names = names
        prefix = package if wing == package else f"{package}.{wing}"
        listed += [(prefix, f"{prefix}.{name}") for name in names]
    return listed


def module_files() -> dict[str, Path]:
    """Every module of both packages."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = module_files()
FOLDERS = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def imports_of(tree: ast.AST, *, at_import: bool = False) -> Iterator[str]:
    """Names of imported modules, `import a.b` and `from a import b` alike as `a.b` where b is a module of ours.

    With `at_import` only those that are imported with the module: not what stands in functions, nor what stands under
    `if TYPE_CHECKING:`.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [name for name in submodules if name in MODULES]
            yield from known
            if len(known) < len(submodules):
                yield node.module
        elif at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        elif at_import and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                yield from imports_of(other, at_import=at_import)
        else:
            yield from imports_of(node, at_import=at_import)


def imported_by(name: str, *, at_import: bool = False) -> set[str]:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    return set(imports_of(tree, at_import=at_import))


def upward_imports(listed: list[Room], imports: dict[str, set[str]]) -> list[str]:
    """What imports something of its own package that does not stand behind it or below it."""
    place = {name: index for index, (_, name) in enumerate(listed)}
    wing_of = {name: wing for wing, name in listed}
    package = listed[0][1].partition(".")[0]
    found = []
    for name in place:
        for other in sorted(imports.get(name, ())):
            if not other.startswith(f"{package}.") or place.get(other, -1) > place[name]:
                continue
            if other not in place:
                found.append(f"{name} imports {other}, which is no module of the page")
            elif wing_of[other] == wing_of[name]:
                found.append(f"{name} imports {other}, which stands before it in its wing")
            else:
                found.append(f"{name} imports {other}: {wing_of[name]} must not import from {wing_of[other]} above it")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_lists_every_module_once(package: str) -> None:
    listed = [name for _, name in rooms(package) if name != DEVICE_LINE]
    assert len(listed) == len(set(listed))
    assert set(listed) == {name for name in MODULES if name.startswith(f"{package}.")} - FOLDERS


@pytest.mark.parametrize("package", PACKAGES)
def test_each_wing_is_a_folder_that_the_page_explains(package: str) -> None:
    """One stretch of the list for each folder; only what belongs to none stands in several places."""
    stretches = [wing for wing, _ in groupby(wing for wing, _ in rooms(package)) if wing not in (package, DEVICE_LINE)]
    assert len(stretches) == len(set(stretches)), "a wing is in two places of the list"
    assert set(stretches) == {name for name in FOLDERS if name.count(".") == 1 and name.startswith(f"{package}.")}
    explained = re.findall(rf"^\| `({package}/\w+)` \| .+ \|$", PAGE, re.MULTILINE)
    assert [name.replace("/", ".") for name in explained] == stretches


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_itself_imports_nothing_of_ours(package: str) -> None:
    """Every module imports it, so that it would be below all wings whatever it needs."""
    assert not {name for name in imported_by(package) if name.partition(".")[0] in PACKAGES}


@pytest.mark.parametrize("name", sorted(FOLDERS - set(PACKAGES)))
def test_the_init_of_a_wing_says_what_it_is_for_and_holds_nothing_else(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    text = ast.get_docstring(tree)
    assert text and len(tree.body) == 1
    if name.count(".") == 1:
        assert re.search(r"^In: .+\bOut: .+\b(Knows?|must|never)\b", text, re.DOTALL | re.MULTILINE | re.IGNORECASE)


@pytest.mark.parametrize("package", PACKAGES)
def test_wings_import_only_wings_below_them_and_modules_only_what_stands_behind_them(package: str) -> None:
    listed = rooms(package)
    wrong = upward_imports(listed, {name: imported_by(name) for _, name in listed if name != DEVICE_LINE})
    assert not wrong, "\n".join(wrong)


def test_the_check_can_fail() -> None:
    text = f"top     a  b\n        c\n{DEVICE_LINE}\nbottom  d\nengine  e\n"
    listed = parse_rooms("engine", text)
    assert [name for _, name in listed if name != DEVICE_LINE] == [
        "engine.top.a", "engine.top.b", "engine.top.c", "engine.bottom.d", "engine.e",
    ]  # fmt: skip
    assert upward_imports(listed, {"engine.top.a": {"engine.top.c", "engine.bottom.d", "engine.e", "torch"}}) == []
    assert "above it" in upward_imports(listed, {"engine.bottom.d": {"engine.top.c"}})[0]
    assert "in its wing" in upward_imports(listed, {"engine.top.b": {"engine.top.a"}})[0]
    assert "no module" in upward_imports(listed, {"engine.e": {"engine.top"}})[0]
    source = "def f():\n    import torch\nclass C:\n    import numpy\nif TYPE_CHECKING:\n    import server.app\n"
    assert set(imports_of(ast.parse(source))) == {"torch", "numpy", "server.app"}
    assert set(imports_of(ast.parse(source), at_import=True)) == {"numpy"}


def test_the_engine_knows_neither_server_nor_web_framework() -> None:
    forbidden = {"server", "bench", "tests", "scripts", "fastapi", "starlette", "uvicorn", "pydantic"}
    for name in MODULES:
        roots = {other.partition(".")[0] for other in imported_by(name)}
        if name.partition(".")[0] == "engine":
            assert not roots & forbidden, f"{name} imports {roots & forbidden}"
        assert not roots & {"bench", "tests", "scripts"}, name


def below_the_device_line() -> list[str]:
    names = [name for _, name in rooms("engine")]
    return names[names.index(DEVICE_LINE) + 1 :]


def test_below_the_device_line_nothing_imports_torch() -> None:
    below = below_the_device_line()
    assert {"engine.scheduling.scheduler", "engine.client", "engine.weights.sources"} <= set(below)
    for name in below:
        roots = {other.partition(".")[0] for other in imported_by(name, at_import=True)}
        assert not roots & {"torch", "transformers"}, name


def test_the_server_imports_only_what_stands_below_the_device_line() -> None:
    """Not in functions either."""
    allowed = {"engine", *below_the_device_line()}
    for name in MODULES:
        if name.startswith("server."):
            found = {other for other in imported_by(name) if other.partition(".")[0] == "engine"}
            assert found <= allowed, f"{name} imports {found - allowed}"


def test_the_api_process_loads_without_torch() -> None:
    """What the AST cannot see: what the packages it stands on import in their turn."""
    names = [name for name in MODULES if name.startswith("server.")] + below_the_device_line()
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_tests_stand_as_the_house_does() -> None:
    for package in PACKAGES:
        folders = {path.parent.name for path in (ROOT / "tests" / package).glob("*/*.py")}
        assert not {f"{package}.{folder}" for folder in folders} - FOLDERS, "a folder of tests is of no wing"
