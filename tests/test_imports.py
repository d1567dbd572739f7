"""The direction of imports: the rooms of docs/architecture.md, in their order, and nothing else."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("engine", "server")
DEVICE_LINE = "---- device line ----"


def rooms(package: str) -> list[str]:
    """Modules of a package in the page's order, with the device line among them."""
    block = re.search(rf"<!-- rooms: {package} -->\n```\n(.*?)```", PAGE, re.DOTALL)
    assert block, f"docs/architecture.md lists no rooms of {package}"
    listed: list[str] = []
    for line in block[1].splitlines():
        listed += [line] if line == DEVICE_LINE else [f"{package}.{name}" for name in line.split()]
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


def imports_of(tree: ast.AST, *, inside_functions: bool) -> Iterator[str]:
    """Names of imported modules, `import a.b` and `from a import b` alike as `a.b` where b is a module of ours.

    What stands under `if TYPE_CHECKING:` is never imported and does not count.
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
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                yield from imports_of(other, inside_functions=inside_functions)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports_of(node, inside_functions=inside_functions)


def imported_by(name: str, *, inside_functions: bool = True) -> set[str]:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    return set(imports_of(tree, inside_functions=inside_functions))


def check_order(order: list[str], imports: dict[str, set[str]]) -> list[str]:
    """What imports something of its own package that does not stand before it."""
    place = {name: index for index, name in enumerate(order)}
    package = order[0].partition(".")[0]
    return [
        f"{name} imports {other}, which does not stand before it"
        for name in place
        for other in sorted(imports.get(name, ()))
        if other.startswith(f"{package}.") and place.get(other, len(order)) >= place[name]
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_lists_every_module_once(package: str) -> None:
    listed = [name for name in rooms(package) if name != DEVICE_LINE]
    assert len(listed) == len(set(listed))
    # An empty __init__ is a folder, not a room.
    existing = {
        name
        for name, path in MODULES.items()
        if name.startswith(f"{package}.") and (path.name != "__init__.py" or path.read_text(encoding="utf-8").strip())
    }
    assert set(listed) == existing


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports_only_what_stands_before_it(package: str) -> None:
    order = rooms(package)
    wrong = check_order(order, {name: imported_by(name) for name in order if name != DEVICE_LINE})
    assert not wrong, "\n".join(wrong)


def test_the_check_can_fail() -> None:
    order = ["engine.a", DEVICE_LINE, "engine.b"]
    assert check_order(order, {"engine.b": {"engine.a"}}) == []
    assert check_order(order, {"engine.a": {"engine.b"}}) and check_order(order, {"engine.a": {"engine.unlisted"}})
    source = "def f():\n    import torch\nclass C:\n    import numpy\nif TYPE_CHECKING:\n    import server.app\n"
    assert set(imports_of(ast.parse(source), inside_functions=True)) == {"torch", "numpy"}
    assert set(imports_of(ast.parse(source), inside_functions=False)) == {"numpy"}


def test_the_engine_knows_neither_server_nor_web_framework() -> None:
    forbidden = {"server", "bench", "tests", "scripts", "fastapi", "starlette", "uvicorn", "pydantic"}
    for name in MODULES:
        roots = {other.partition(".")[0] for other in imported_by(name)}
        if name.partition(".")[0] == "engine":
            assert not roots & forbidden, f"{name} imports {roots & forbidden}"
        assert not roots & {"bench", "tests", "scripts"}, name


def test_above_the_device_line_nothing_imports_torch() -> None:
    order = rooms("engine")
    above = order[: order.index(DEVICE_LINE)]
    assert {
        "engine.scheduling.scheduler",
        "engine.scheduling.block_manager",
        "engine.client",
        "engine.weights.sources",
    } <= set(above)
    for name in above:
        roots = {other.partition(".")[0] for other in imported_by(name, inside_functions=False)}
        assert not roots & {"torch", "transformers"}, name


def test_the_api_process_loads_without_torch() -> None:
    """What the AST cannot see: what the packages it stands on import in their turn."""
    order = rooms("engine")
    names = [name for name in MODULES if name.startswith("server.")] + order[: order.index(DEVICE_LINE)]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
