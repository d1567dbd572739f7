"""Directories, files and hub ids on the command line: served as they are, called what a person would call them."""

from pathlib import Path

import pytest

from engine.errors import ConfigError
from server.config.settings import ModelsFile, load_models_file
from server.config.unlisted import Chosen, choose
from tests.places import ROOT


@pytest.fixture
def file() -> ModelsFile:
    return load_models_file(ROOT / "models.yaml")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what looks like weights in several places."""
    for place in ("Phi-4", "other/Phi-4", "models--org--its.name/snapshots/0123456789abcdef"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text("{}")
        (tmp_path / place / "model.safetensors").write_bytes(b"")
    (tmp_path / "My model (new).Q4_K_M.gguf").write_bytes(b"GGUF")
    (tmp_path / "one.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(chosen: Chosen) -> list[tuple[str, str, str | None]]:
    return [(spec.name, spec.source, spec.revision) for spec in chosen.specs]


def test_names_of_the_file_come_first_and_nothing_is_said_of_them(weights: Path, file: ModelsFile) -> None:
    (weights / "smollm2").mkdir()
    chosen = choose(["smollm2", "google/gemma-2-2b-it", "HuggingFaceTB/SmolLM2-135M-Instruct"], file)
    assert [spec.name for spec in chosen.specs] == ["HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-2-2b-it"]
    assert not chosen.said


@pytest.mark.parametrize("has_file", [True, False])
@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("./Phi-4", "Phi-4"),
        ("Phi-4", "Phi-4"),
        ("other/Phi-4/", "Phi-4"),
        ("{here}/Phi-4", "Phi-4"),
        ("{here}/models--org--its.name/snapshots/0123456789abcdef", "org/its.name"),
        ("My model (new).Q4_K_M.gguf", "My-model-new-.Q4_K_M"),
        ("random://llama?hidden_size=64", "llama"),
        ("random://{here}/Phi-4/config.json?hidden_size=64", "config"),
    ],
)
def test_what_is_here_is_served_under_a_name_made_from_it(
    given: str, name: str, has_file: bool, weights: Path, file: ModelsFile
) -> None:
    given = given.format(here=weights)
    chosen = choose([given], file if has_file else None)
    assert named(chosen) == [(name, given, None)]
    assert (
        len(chosen.said) == 1 and chosen.said[0].startswith(f"{given} is not in models.yaml") and name in chosen.said[0]
    )


def test_hub_ids_keep_their_name_and_may_name_a_revision(weights: Path, file: ModelsFile) -> None:
    chosen = choose(["Qwen/Qwen3-0.6B", "org/name@v1.0"], file)
    assert named(chosen) == [("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", None), ("org/name", "org/name", "v1.0")]


def test_a_hub_id_that_looks_like_a_name_of_the_file_is_asked_about(file: ModelsFile) -> None:
    (said,) = choose(["Qwen/Qwen2.5-Coder-32B-Instrct"], file).said
    assert "did you mean Qwen/Qwen2.5-Coder-32B-Instruct?" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("./nothing", "./nothing does not exist"),
        ("nothing.gguf", "nothing.gguf does not exist"),
        ("~/nothing/at/all", "does not exist"),
        ("one.safetensors", "is not a GGUF file"),
        ("models--org--its.name", "is incomplete"),
        ("package://no_such_package/x.gguf", "not installed"),
        ("smolm2", "models.yaml has no model 'smolm2'"),
        ("a/b/c", "models.yaml has no model 'a/b/c'"),
        ("", "models.yaml has no model ''"),
    ],
)
def test_what_is_not_here_is_said_before_anything_starts(
    given: str, said: str, weights: Path, file: ModelsFile
) -> None:
    with pytest.raises(ConfigError) as caught:
        choose([given], file)
    assert said in str(caught.value)


def test_without_a_file_a_mere_name_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"no hub id, and there is no models\.yaml here"):
        choose(["smollm2"], None)


def test_two_models_of_one_name_are_refused(weights: Path, file: ModelsFile) -> None:
    with pytest.raises(ConfigError, match=r"\./Phi-4 and other/Phi-4 would both be called Phi-4"):
        choose(["./Phi-4", "other/Phi-4"], file)
    (weights / "smollm2.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"would both be called smollm2"):
        choose(["smollm2", "./smollm2.gguf"], file)
    assert len(choose(["./Phi-4", "./Phi-4"], file).specs) == 1
