"""The bias that takes off what rounding to FP8 adds on average."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from engine.models import sample
from engine.models.fp8 import Fp8Linear, quantize_linears
from engine.models.fp8_offsets import InputMean, input_means, offset
from engine.models.sample import WINDOW
from engine.weights.random_tokenizer import write_tokenizer
from tests.engine.models.test_fp8 import load_from
from tests.tiny_models import VOCAB_SIZE


@pytest.fixture(scope="module")
def with_tokenizer(tiny_model_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenized") / "llama"
    shutil.copytree(tiny_model_dir("llama"), directory, copy_function=shutil.copy)
    write_tokenizer(directory, VOCAB_SIZE, None)
    return directory


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_right_on_average(bias: bool) -> None:
    """Of inputs with a mean of their own: without the offset, outputs are off by as much for every row."""
    torch.manual_seed(0)
    linear = nn.Linear(256, 64, bias=bias)
    rows = torch.randn(500, 256) + torch.linspace(-20, 20, 256)
    mean = InputMean()
    for part in rows.split([100, 350, 50]):
        mean.add(part)
    decoder = nn.ModuleDict({"a": linear})
    with torch.inference_mode():
        wanted = linear(rows)
        plain = Fp8Linear.quantized(linear.weight, linear.bias)(rows)
        assert quantize_linears(decoder, {linear: mean}) == 1
        found = decoder["a"](rows)
    assert isinstance(decoder["a"], Fp8Linear)
    assert float((plain - wanted).mean(0).abs().mean()) > 0.05
    assert float((found - wanted).mean(0).abs().max()) < 1e-3
    assert float((found - wanted).abs().mean()) < 0.9 * float((plain - wanted).abs().mean())


def test_the_offset_is_what_the_products_lack() -> None:
    torch.manual_seed(1)
    weight, rows = torch.randn(32, 64), torch.randn(40, 64) + 5
    mean = InputMean()
    mean.add(rows)
    made = Fp8Linear.quantized(weight, None)
    lacking = (rows @ weight.t() - made(rows)).mean(0)
    torch.testing.assert_close(offset(weight, made.weight, made.scale, mean), lacking, atol=1e-4, rtol=1e-4)


def test_a_model_reads_the_sample_with_transformers_attention(with_tokenizer: Path) -> None:
    model = load_from(with_tokenizer).model
    model.set_attn_implementation("sdpa")
    means = input_means(model, with_tokenizer)
    linears = [module for module in model.get_decoder().modules() if type(module) is nn.Linear]
    assert set(means) == set(linears) and {mean.count for mean in means.values()} == {8 * WINDOW}
    assert model.config._attn_implementation == "sdpa" and not any(linear._forward_pre_hooks for linear in linears)


def test_a_window_begins_as_texts_do(with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Tokenizer.encode

    def with_first(self: Tokenizer, text: str, add_special_tokens: bool = True) -> object:
        return encode(self, ("\u0120" if add_special_tokens else "") + text)

    windows = list(sample.windows(with_tokenizer / "tokenizer.json", VOCAB_SIZE))
    assert len(windows) == 8 and {len(window) for window in windows} == {WINDOW}
    monkeypatch.setattr(sample.Tokenizer, "encode", with_first)
    assert all(window[:-WINDOW] for window in sample.windows(with_tokenizer / "tokenizer.json", VOCAB_SIZE))


def test_only_a_model_with_a_tokenizer_gets_offsets(
    with_tokenizer: Path, tiny_model_dir: Callable[[str], Path]
) -> None:
    for directory, has_offsets in ((with_tokenizer, True), (tiny_model_dir("llama"), False)):
        made = [m for m in load_from(directory, quantization="fp8").model.modules() if isinstance(m, Fp8Linear)]
        assert made and all((linear.bias is not None) is has_offsets for linear in made)
