"""GGUF files become models and tokenizers that equal their originals."""

import json
import multiprocessing
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from engine.cache import no_progress
from engine.errors import ModelLoadError
from engine.weights.checkpoint import check_directory, weight_files
from engine.weights.gguf import convert, converted_dir, is_converted
from engine.weights.gguf_config import _llama3_scaling
from engine.weights.gguf_file import GGUFFile
from engine.weights.gguf_tokenizer import build_tokenizer
from tests.engine.weights.gguf_samples import write_model, write_tokenizer
from tests.places import ROOT, SHARED

SHARED_TOKENIZERS = SHARED / "tokenizers"
TEXTS = (
    "Hello, world! It's 12345 o'clock; I'll pay 6.789,00 $ by 2031-01-02.",
    "  leading   spaces\n\n\n\ttabs and\r\nnew lines   ",
    "def f(x):\n        return {'a': x**2}  # done\n",
    "naïve café, Ünïcödé, 中文字符, 日本語、한국어, नमस्ते, ١٢٣, 🙂👩‍👩‍👧",
    "e\u0301 composed from two",
    "CamelCaseWORDS and snake_case_words don't matter, they're words we've seen",
)


# The file cannot say it; for the published sizes it follows from the others.
_NOT_IN_GGUF = {"gemma2": {"query_pre_attn_scalar": 256}}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3"])
def test_a_converted_model_computes_what_the_original_does(
    family: str, tiny_model_dir: Callable[[str], Path], tmp_path: Path, cache: Path
) -> None:
    directory = tiny_model_dir(family)
    write_model(tmp_path / "tiny.gguf", directory)
    converted = convert(tmp_path / "tiny.gguf", no_progress)
    # In bf16 the original too, so that both round the same weights.
    changed = _NOT_IN_GGUF.get(family, {})
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="eager", **changed).float()
        for path in (directory, converted)
    ]
    ids = torch.arange(3, 43)[None]
    with torch.inference_mode():
        expected, got = (model(ids).logits for model in models)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_quantised_blocks_are_unpacked(tiny_model_dir: Callable[[str], Path], tmp_path: Path, cache: Path) -> None:
    from safetensors.torch import load_file

    directory = tiny_model_dir("llama")
    write_model(tmp_path / "tiny.gguf", directory, kind=gguf.GGMLQuantizationType.Q8_0)
    converted = load_file(convert(tmp_path / "tiny.gguf", no_progress) / "model.safetensors")
    original = load_file(directory / "model.safetensors")
    assert converted.keys() == original.keys()
    for name, values in original.items():
        error = (converted[name].float() - values).abs().max() / values.abs().max()
        assert error < 0.012, name  # half a step of 127, and bf16's rounding


def test_a_large_file_is_unpacked_in_parts_and_loads_as_a_whole_one_does(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "whole.gguf", tiny_model_dir("llama"))
    (tmp_path / "parts.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes())
    whole = convert(tmp_path / "whole.gguf", no_progress)
    monkeypatch.setattr("engine.weights.gguf._PART_BYTES", 50_000)
    parts = convert(tmp_path / "parts.gguf", no_progress)
    names = sorted(path.name for path in parts.glob("*.safetensors"))
    assert len(names) > 2 and names[-1] == f"model-{len(names):05}-of-{len(names):05}.safetensors"
    check_directory(parts, "parts")
    assert weight_files(parts) == [parts / name for name in names]
    expected = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    got = AutoModelForCausalLM.from_pretrained(parts).state_dict()
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_disk_that_is_too_full_is_said_before_anything_is_unpacked(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "tiny.gguf", tiny_model_dir("llama"))
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("engine.weights.gguf.shutil.disk_usage", lambda path: full)
    told: list[str] = []
    with pytest.raises(ModelLoadError, match=r"of disk, 0\.0 GB are free"):
        convert(tmp_path / "tiny.gguf", lambda stage, fraction: told.append(stage))
    assert not told and not list(cache.rglob("*.safetensors"))


def test_a_conversion_is_done_once_and_tells_of_its_progress(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("llama"))
    told: list[float | None] = []
    assert not is_converted(path)
    directory = convert(path, lambda stage, fraction: told.append(fraction))
    assert is_converted(path)
    assert told[0] == 0.0 and told[-1] == 1.0 and told == sorted(told, key=lambda fraction: fraction or 0.0)
    before = (directory / "model.safetensors").stat().st_mtime_ns
    told.clear()
    assert convert(path, lambda stage, fraction: told.append(fraction)) == directory
    assert not told and (directory / "model.safetensors").stat().st_mtime_ns == before


def test_half_a_conversion_is_never_used(tiny_model_dir: Callable[[str], Path], tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("llama"))
    left_behind = converted_dir(path)
    left_behind.mkdir(parents=True)
    (left_behind / "config.json").write_text("{}")
    directory = convert(path, no_progress)
    assert json.loads((directory / "config.json").read_text())["model_type"] == "llama"


def test_a_failed_conversion_leaves_nothing(tiny_model_dir: Callable[[str], Path], tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("llama"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelLoadError, match="cannot be unpacked"):
        convert(path, no_progress)
    assert not [entry for entry in (cache / "converted").iterdir() if entry.is_dir()]


FILL = """
import resource, signal, sys
from pathlib import Path
from engine.cache import no_progress
from engine.errors import ModelLoadError
from engine.weights.gguf import convert
from engine.weights.random_model import random_model_dir
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    convert(Path(sys.argv[1]), no_progress) if sys.argv[1].endswith(".gguf") else random_model_dir(sys.argv[1])
except ModelLoadError as error:
    print(error.message)
"""
"""Makes a model on a disk that takes files of so many bytes alone, as a full one takes no more."""


@pytest.mark.parametrize("room", [0, 100, 5_000, 20_000])
@pytest.mark.parametrize("kind", ["tiny.gguf", "qwen2?hidden_size=64&vocab_size=3000"])
def test_a_full_disk_leaves_nothing_half_made(
    kind: str, room: int, tiny_model_dir: Callable[[str], Path], tmp_path: Path, cache: Path
) -> None:
    source = kind
    if kind.endswith(".gguf"):
        source = str(tmp_path / kind)
        write_model(tmp_path / kind, tiny_model_dir("llama"))
    command = [sys.executable, "-c", FILL, source, str(room)]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert said.startswith("cannot write "), said
    assert not [entry for entry in cache.rglob("*") if entry.is_dir() and entry.parent != cache]


def test_what_a_killed_conversion_left_is_swept(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("llama"))
    left = converted_dir(path).with_name(f"{converted_dir(path).name}.left")
    left.mkdir(parents=True)
    (left / "part-0").write_bytes(b"x")
    convert(path, no_progress)
    assert not left.exists()


def test_two_processes_converting_at_once_both_get_it(
    tiny_model_dir: Callable[[str], Path], tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path, tiny_model_dir("gemma2"))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        directories = pool.starmap(convert, [(path, no_progress)] * 2)
    assert directories[0] == directories[1] == converted_dir(path)
    assert [entry for entry in (cache / "converted").iterdir() if entry.is_dir()] == [directories[0]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read|empty"),
        (b"PK\x03\x04" + bytes(100), "letters GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version is 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 5), "not a GGUF file that can be read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "names no architecture"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**60),
            "read",
        ),
    ],
)
def test_a_broken_file_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=said):
        GGUFFile(path)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path, cache: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelLoadError, match="'mamba'") as caught:
        convert(tmp_path / "odd.gguf", no_progress)
    assert "llama" in (caught.value.hint or "")


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_scaling_is_recognised(factor: float) -> None:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model("llama", head_dim=128, rope_parameters=scaling, max_position_embeddings=131072)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 500000.0 ** (torch.arange(64) / 64)
    found = _llama3_scaling((plain / scaled).numpy(), 500000.0)
    assert found == {key: value for key, value in scaling.items() if key != "rope_theta"}
    with pytest.raises(ModelLoadError, match="rope_freqs"):
        _llama3_scaling((plain / scaled).numpy() * 1.5, 500000.0)


def test_smollm2_is_itself(smollm2_dir: Path) -> None:
    """Token ids and the end token as in the model's own repository."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    assert tokenizer.convert_ids_to_tokens(tokenizer("in 12345").input_ids) == ["in", "Ġ", "1", "2", "3", "4", "5"]
    assert tokenizer("<|im_start|>user").input_ids == [1, 4093]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    assert ids[:8] == [1, 9690, 198, 2683, 359, 253, 5356, 5646]
    specials = json.loads((smollm2_dir / "tokenizer.json").read_text())["added_tokens"]
    assert len(specials) == 17 and all(token["special"] for token in specials)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    assert model.config.tie_word_embeddings and not hasattr(model.config, "quantization_config")
    output = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
    assert "Paris" in tokenizer.decode(output)
    assert output[-1] == 2 and 2 in model.generation_config.eos_token_id


@pytest.mark.skipif(not SHARED_TOKENIZERS.is_dir(), reason="needs ../shared/tokenizers beside the repository")
@pytest.mark.parametrize(
    ("name", "pre", "bos"),
    [("llama3_1", "llama-bpe", "<|begin_of_text|>"), ("qwen2_5", "qwen2", None), ("gemma2", None, "<bos>")],
)
def test_tokenizers_split_text_as_their_originals(name: str, pre: str | None, bos: str | None, tmp_path: Path) -> None:
    original_file = SHARED_TOKENIZERS / name / "tokenizer.json"
    write_tokenizer(tmp_path / "t.gguf", json.loads(original_file.read_text()), pre=pre, bos_token=bos)
    built, _ = build_tokenizer(GGUFFile(tmp_path / "t.gguf"))
    original, converted = Tokenizer.from_file(str(original_file)), Tokenizer.from_str(json.dumps(built))
    assert converted.get_vocab_size() == original.get_vocab_size()
    specials = [token["content"] for token in built["added_tokens"] if token["special"]]
    for text in (*TEXTS, "".join(TEXTS), specials[0] + "user" + specials[-1] + " hi"):
        expected = original.encode(text).ids
        assert converted.encode(text).ids == expected, text
        assert converted.decode(expected) == original.decode(expected)


def test_an_unknown_way_of_splitting_is_refused(tmp_path: Path) -> None:
    tokenizer = {"model": {"vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": []}
    write_tokenizer(tmp_path / "t.gguf", tokenizer, pre="nobody-knows", bos_token=None)
    with pytest.raises(ModelLoadError, match="nobody-knows"):
        build_tokenizer(GGUFFile(tmp_path / "t.gguf"))
