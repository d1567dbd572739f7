"""The documentation says what is there: tables, commands, examples, links, names."""

import ast
import json
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

import pytest

from bench.gpu.__main__ import parse as parse_suite
from engine.weights.sources import HUB_ID, is_path
from scripts import generate_docs
from server.commands.cli import build_parser
from server.config.settings import _MODEL_FIELDS, load_models_file
from server.protocol.request import parse_chat_request
from tests.places import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
}
EVERYTHING = "\n".join(PAGES.values())
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[tuple[str, str]]:
    """Fenced blocks of a language, with the page each stands on."""
    return [(page, body) for page, text in PAGES.items() for kind, body in FENCE.findall(text) if kind == language]


def commands() -> list[list[str]]:
    """Words of every command line that the documentation shows, and of those quoted in running text."""
    shown = [line for _, body in blocks("sh") for line in body.replace("\\\n", " ").splitlines() if line.strip()]
    quoted = re.findall(r"`((?:make|headrace|python -m) [^`]+)`", FENCE.sub("", EVERYTHING))
    return [shlex.split(line) for line in [*shown, *quoted]]


def request_bodies() -> list[str]:
    return [word for words in commands() if words[0] == "curl" for word in words if word.startswith("{")]


@cache
def source_names() -> tuple[dict[str, set[str]], set[str]]:
    """Classes of both packages with what they define, and every function."""
    classes: dict[str, set[str]] = {}
    functions: set[str] = set()
    for package in ("engine", "server"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    members = {getattr(child, "name", "") for child in node.body}
                    classes.setdefault(node.name, set()).update(members)
                elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    functions.add(node.name)
    return classes, functions


def test_the_tables_are_those_of_the_code() -> None:
    assert not generate_docs.stale_pages(), "run: make docs"


def test_a_stale_table_is_noticed_and_mended() -> None:
    text = PAGES["docs/api.md"]
    assert "| `seed` |" in text
    assert generate_docs.regenerated(text.replace("| `seed` |", "| `seeds` |")) == text


def test_every_table_is_on_a_page_and_every_region_has_an_end() -> None:
    regions = re.findall(r"<!-- table: (\w+) -->", EVERYTHING)
    assert set(regions) == set(generate_docs.TABLES)
    assert EVERYTHING.count("<!-- end -->") == len(regions)
    for page, text in PAGES.items():
        assert "<!-- table:" not in text or page in generate_docs.PAGES


@pytest.mark.parametrize("body", request_bodies())
def test_the_parser_takes_each_request_that_is_shown(body: str) -> None:
    assert parse_chat_request(body.encode()).messages


def test_the_readme_has_a_request_to_try() -> None:
    assert len(request_bodies()) >= 2 and "curl " in PAGES["README.md"]


def test_each_example_is_of_its_language() -> None:
    for page, body in blocks("python"):
        compile(body, page, "exec")
    for _, body in blocks("json"):
        json.loads(body)


def test_each_models_file_that_is_shown_is_accepted(tmp_path: Path) -> None:
    shown = blocks("yaml")
    assert shown
    for _, body in shown:
        path = tmp_path / "models.yaml"
        path.write_text(body)
        assert load_models_file(path).models


def test_each_command_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = load_models_file(ROOT / "models.yaml")
    seen = set()
    for words in commands():
        program = words[0].rpartition("/")[2]
        seen.add(program)
        match program:
            case "make":
                assert words[1] in targets, words
                for setting in words[2:]:
                    assert setting.partition("=")[0] in ("PORT", "HOST", "PYTHON", "ARGS"), words
                    if words[1] in ("gpu", "gpu-bench") and setting.startswith("ARGS="):
                        parse_suite(shlex.split(setting.removeprefix("ARGS=")))
                    elif setting.startswith("ARGS=--"):
                        build_parser().parse_args(["serve", *shlex.split(setting.removeprefix("ARGS="))])
            case "headrace" if words[1:] == ["--version"]:
                pass  # tests/server/commands/test_cli.py runs it
            case "headrace":
                options = build_parser().parse_args([word for word in words[1:] if word not in ("NAME...", "MODEL...")])
                for name in getattr(options, "names", ()):
                    assert known.get(name) or is_path(name) or HUB_ID.fullmatch(name.partition("@")[0]), words
            case "python":
                module = ROOT / words[2].replace(".", "/")
                assert words[1] == "-m", words
                assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), words
            case _:
                assert program in ("cd", "curl", "docker", "git", "pip", "kubectl", "serve"), words
    assert {"make", "headrace", "curl"} <= seen


def test_every_make_target_for_people_is_in_the_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony and set(phony[1].split()) == set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", PAGES[page])):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.is_file(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page} links to {target}"


def test_every_page_is_linked_from_the_readme() -> None:
    for page in PAGES:
        assert page == "README.md" or f"]({page}" in PAGES["README.md"], page


def test_every_route_is_documented() -> None:
    from server.app import ROUTES

    paths = {route.path for route in ROUTES}
    for path in paths:
        assert f"{path.replace(':path', '')}`" in PAGES["docs/api.md"], path


@cache
def texts_of_the_source() -> str:
    """Every text of both packages, a line each, with `…` for what is put into it."""
    found = []
    for package in ("engine", "server"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_source() -> None:
    """First cells that are code alone, or say a message beside words, are what the server writes."""
    text = PAGES["docs/troubleshooting.md"]
    cells = re.findall(r"^\| (.+?) \| ", text, re.MULTILINE)
    messages = [message for cell in cells for message in re.findall(r"`([^`]* [^`]* [^`]*)`", cell)]
    assert len(messages) > 35
    missing = [message for message in messages if message not in texts_of_the_source()]
    assert not missing


def test_every_error_code_is_documented() -> None:
    """`code=` of every call in the server, and of the engine's refusals."""
    found = set()
    for package in ("server", "engine"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                    found.add(node.value.value)
    assert {"context_length_exceeded", "model_not_found"} <= found
    # `http_error` stands for whatever status a library may raise one day; no route does now.
    undocumented = {code for code in found - {"http_error"} if code and f"`{code}`" not in PAGES["docs/api.md"]}
    assert not undocumented


def test_every_key_of_models_yaml_is_documented_in_both_places() -> None:
    comments = (ROOT / "models.yaml").read_text(encoding="utf-8")
    for key in _MODEL_FIELDS:
        assert f"\n| `{key}` | " in PAGES["docs/models.md"], key
        assert re.search(rf"^#.*\b{key}\b", comments, re.MULTILINE), key


def test_every_runtime_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=]", text)[0] for text in project["dependencies"]}
    explained = set(
        re.findall(r"^\| `([\w-]+)` \| ", PAGES["docs/architecture.md"].split("## What it stands on")[1], re.M)
    )
    assert explained == names


def test_every_environment_variable_is_documented() -> None:
    sources = "".join(path.read_text() for name in ("engine", "server") for path in (ROOT / name).rglob("*.py"))
    for variable in set(re.findall(r"\bHEADRACE_[A-Z_]+\b", sources)):
        assert f"`{variable}`" in PAGES["docs/deployment.md"], variable


def test_the_names_on_the_architecture_page_exist() -> None:
    classes, functions = source_names()
    text = FENCE.sub("", PAGES["docs/architecture.md"]).split("## What it stands on")[0]
    for path in re.findall(r"`((?:engine|server|tests)/[\w/]+\.\w+)`", text):
        assert (ROOT / path).is_file(), path
    for owner, member in re.findall(r"`([A-Z]\w+)\.(\w+)`", text):
        assert member in classes[owner], f"{owner}.{member}"
    single = set(re.findall(r"`([A-Z]\w+[a-z]\w*)`", text)) - {"AttentionInterface", "Delta"}
    assert len(single) > 10 and single <= set(classes), single - set(classes)
    for name in re.findall(r"`([a-z]+_[a-z_]+)`", text):
        rooms = {path.stem for package in ("engine", "server") for path in (ROOT / package).rglob("*.py")}
        fields = {
            "num_tokens",
            "num_computed_tokens",
            "num_unread_tokens",
            "prompt_logprobs",
            "last_tokens",
            "min_tokens",
            "top_k",
            "top_p",
            "min_p",
        }
        assert name in functions | rooms | fields, name


def test_no_page_claims_a_speed_without_its_measurement() -> None:
    """A number of tokens a second needs a result file and a commit near it."""
    for page, text in PAGES.items():
        for paragraph in text.split("\n\n"):
            if re.search(r"\d\s*(?:tok(?:ens?)?\s*/\s*s|tokens (?:a|per) second)", paragraph):
                assert "bench/results/" in text and re.search(r"\b[0-9a-f]{7,40}\b", text), f"{page}: {paragraph}"
