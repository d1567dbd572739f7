"""Which models a command line serves, and which of them are loaded at start."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError
from server.commands.served import choose_served
from server.config.settings import ModelsFile, load_models_file


def models(tmp_path: Path, *entries: dict[str, Any], default: str = "org/a") -> ModelsFile:
    path = tmp_path / "models.yaml"
    path.write_text(json.dumps({"default": default, "models": entries}))
    return load_models_file(path)


@pytest.fixture
def file(tmp_path: Path) -> ModelsFile:
    return models(
        tmp_path,
        {"name": "org/b", "load": "startup"},
        {"name": "org/a", "aliases": ["small", "gpt-*"]},
        {"name": "org/c", "aliases": ["see"]},
        {"name": "org/d", "load": "pinned"},
    )


def loads(*names: str, file: ModelsFile, **more: Any) -> list[tuple[str, str]]:
    return [(spec.name, spec.load) for spec in choose_served(names, file, **more).specs]


def test_the_whole_file_is_served_and_loaded_as_it_says(file: ModelsFile) -> None:
    assert loads(file=file) == [
        ("org/a", "startup"), ("org/b", "startup"), ("org/d", "pinned"), ("org/c", "on_demand")
    ]  # fmt: skip


def test_a_default_that_is_on_demand_is_not_loaded_but_answers_who_names_none(tmp_path: Path) -> None:
    file = models(tmp_path, {"name": "org/b", "load": "startup"}, {"name": "org/a", "load": "on_demand"})
    assert loads(file=file) == [("org/a", "on_demand"), ("org/b", "startup")]


def test_who_names_models_has_them_loaded_instead(file: ModelsFile) -> None:
    assert loads("see", file=file) == [
        ("org/c", "startup"), ("org/b", "on_demand"), ("org/a", "on_demand"), ("org/d", "pinned")
    ]  # fmt: skip
    assert loads("see", "org/d", file=file, only=True) == [("org/c", "startup"), ("org/d", "pinned")]
    assert loads(file=file, only=True) == [("org/a", "startup"), ("org/b", "startup"), ("org/d", "pinned")]
    away = choose_served(["org/away@v1"], file)
    assert [spec.name for spec in away.specs] == ["org/away", "org/b", "org/a", "org/c", "org/d"] and away.said


def test_a_name_that_was_given_away_is_no_other_model_s(file: ModelsFile) -> None:
    served = choose_served(["org/c"], file, called=["org/b", "small"])
    assert [(spec.name, spec.aliases) for spec in served.specs] == [
        ("org/b", ("org/c", "see", "small")), ("org/a", ("gpt-*",)), ("org/d", ())
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="2 are to be served"):
        choose_served(["org/a", "org/c"], file, called=["x"])


def test_without_a_file_there_are_only_the_named(tmp_path: Path) -> None:
    assert [spec.load for spec in choose_served(["org/away"], None).specs] == ["startup"]
