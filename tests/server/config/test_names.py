"""The names that models answer to."""

from pathlib import Path

import pytest

from engine.errors import ConfigError
from server.config.names import ModelNames, with_served_names
from server.config.settings import ModelSpec, load_models_file
from tests.clocks import assert_linear

SPEC = ModelSpec(name="org/model", aliases=("small",), source="org/model")


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("gpt-4o", "exact"),
        ("gpt-4o-mini", "mini"),
        ("gpt-4o-2024", "four"),
        ("gpt-5", "any gpt"),
        ("gpt-", "any gpt"),
        ("azure/gpt-5/x", None),
        ("GPT-5", None),
        ("gpt.4o", None),
        ("a1b2c", "letters"),
        ("abc", "letters"),
        ("acb", None),
        ("a\nb\nc", "letters"),
        ("", None),
    ],
)
def test_the_most_particular_alias_decides(name: str, full: str | None) -> None:
    names = ModelNames(
        {"gpt-*": "any gpt", "gpt-4o": "exact", "gpt-4*": "four", "gpt-4*-mini": "mini", "a*b*c": "letters"}
    )
    assert names.full(name) == full


def test_a_star_alone_is_every_name() -> None:
    assert ModelNames({"*": "m"}).full("whatever") == ModelNames({"*": "m"}).full("") == "m"
    assert ModelNames({}).full("x") is None


@pytest.mark.parametrize(
    ("entry", "models"),
    [
        ("org/small", {"org/small"}),
        ("small", {"org/small"}),
        ("org/*", {"org/small"}),
        ("Small", set()),
        ("s?all", {"org/small"}),
        ("[st]mall", {"org/small"}),
        ("none", set()),
        ("gpt-*", {"any gpt", "four"}),
        ("gpt-5", {"any gpt"}),
        ("gpt-4o", {"four"}),
        ("gpt-4*", {"four"}),
        ("gpt-5*", {"any gpt"}),
        ("gpt-4?-*", {"four"}),
        ("*", {"org/small", "any gpt", "four", "bare"}),
        ("any gpt", {"any gpt"}),
        ("bare", {"bare"}),
        ("", set()),
    ],
)
def test_what_an_entry_of_a_key_means(entry: str, models: set[str]) -> None:
    aliases = {"small": "org/small", "gpt-*": "any gpt", "gpt-4*": "four"}
    names = ModelNames(aliases, ["org/small", "bare", "four"])
    assert names.meant_by(entry) == models == names.meant_by(entry)


def test_an_alias_of_any_text_opens_its_model_to_no_key_that_names_another() -> None:
    names = ModelNames({"*": "large", "small-*": "small"}, ["small", "large"])
    assert names.meant_by("small") == names.meant_by("small-2") == names.meant_by("sm*") == {"small"}
    assert names.meant_by("gpt-4o") == names.meant_by("lar*") == {"large"}
    assert names.meant_by("*") == {"small", "large"}


def test_no_name_takes_long() -> None:
    names = ModelNames({"*a*a*a*a*a*a*a*a*b": "m"})

    def work(size: int) -> object:
        return lambda: [names.full("a" * size) for _ in range(20)]

    assert_linear(work, 20_000)  # type: ignore[arg-type]


def test_a_served_name_goes_before_the_model_s_own() -> None:
    (spec,) = with_served_names([SPEC], ["gpt-4*", "gpt-4o", "gpt-4o-mini"])
    assert (spec.name, spec.aliases) == ("gpt-4o", ("org/model", "small", "gpt-4*", "gpt-4o-mini"))
    assert spec.source == "org/model"
    assert with_served_names([SPEC], ["small"])[0].aliases == ("org/model",)
    assert with_served_names([SPEC], ["*"])[0].name == "org/model"
    assert with_served_names([SPEC, SPEC], []) == (SPEC, SPEC)
    with pytest.raises(ConfigError, match="names one model, and 2 are"):
        with_served_names([SPEC, SPEC], ["gpt-4o"])


def test_only_an_alias_of_the_file_may_hold_a_star(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("default: m\nmodels:\n  - name: m\n    aliases: ['gpt-*']\n")
    assert load_models_file(path).models[0].aliases == ("gpt-*",)
    path.write_text("default: 'gpt-*'\nmodels:\n  - name: 'gpt-*'\n")
    with pytest.raises(ConfigError, match=r"models\.yaml:3: a name is one name, without '\*'"):
        load_models_file(path)
