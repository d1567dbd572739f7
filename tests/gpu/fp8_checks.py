"""What `make gpu` checks of FP8, written for any device, so that `make test` tries the checks on the CPU."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engine.engine import Engine
from engine.messages import AddRequest
from engine.models.fp8 import Fp8Linear
from engine.sampling_params import SamplingParams
from tests.engine.test_oracle import make_engine, run
from tests.tiny_models import VOCAB_SIZE

PROMPT = [(7 * i) % (VOCAB_SIZE - 3) + 3 for i in range(40)]
MOVED = 0.25
"""How far FP8 may move the scores of a prompt, on average and as a share of their spread. The tiny models' weights are
drawn large, so that an error grows from layer to layer; 0.02 to 0.15 is what they show on the CPU."""
PRODUCT_ERROR = {torch.float32: 0.005, torch.bfloat16: 0.01, torch.float16: 0.005}
"""Of products, on average and as a share of their spread, beside the exact ones: on CUDA they come out in bf16."""


LARGE_KEYS = 300.0


def give_large_keys(directory: Path) -> None:
    """Give the keys of a tiny qwen2 a large bias in the dimensions that turn slowest, as those of Qwen 2.5 have one."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"]["rope_theta"] = 1e8
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(directory / "model.safetensors")
    for name, bias in weights.items():
        if name.endswith("k_proj.bias"):
            heads = bias.view(-1, 16)
            heads[:, 7], heads[:, 15] = LARGE_KEYS, -LARGE_KEYS
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def products_are_right(device: str, dtype: torch.dtype, rows: int, width: int, outputs: int, *, bias: bool) -> None:
    """An `Fp8Linear` on the device against the exact product of the numbers that the same rows have on the CPU."""
    torch.manual_seed(rows + width)
    weight = torch.randn(outputs, width) * torch.logspace(-2, 1, outputs)[:, None]
    linear = Fp8Linear.quantized(weight.to(dtype), torch.randn(outputs).to(dtype) if bias else None)
    x = (torch.randn(rows, width) * torch.logspace(-2, 1, rows)[:, None]).to(dtype)
    with torch.inference_mode():
        wanted = linear.plain_product(x).float()
        found = linear.to(device)(x.to(device))
    assert found.dtype == dtype and found.shape == (rows, outputs)
    off = (found.cpu().float() - wanted).abs().mean(0) / wanted.abs().mean(0).clamp(min=1e-6)
    assert float(off.mean()) <= PRODUCT_ERROR[dtype], float(off.mean())


def scores(directory: Path, device: str, **options: Any) -> torch.Tensor:
    """Log-probabilities of the tokens of a prompt, computed in pieces; the later ones read the cache of the earlier."""
    return scores_by(make_engine(directory, device=device, max_batched_tokens=16, num_blocks=40, **options))


def scores_by(engine: Engine) -> torch.Tensor:
    """`scores` of an engine that is there."""
    engine.add(AddRequest(1, PROMPT, SamplingParams(max_tokens=4, temperature=0, prompt_logprobs=0)))
    found: list[float] = []
    while engine.has_work:
        for output in engine.step():
            assert output.error is None, output.error
            found += [entry.logprob for entry in output.prompt_logprobs or ()]
    assert len(found) == len(PROMPT) - 1
    return torch.tensor(found)


def scores_stay(directory: Path, device: str, **options: Any) -> None:
    """FP8 weights, an FP8 cache and both move the scores, and not by much."""
    before = scores(directory, device, **options)
    for form in ({"quantization": "fp8"}, {"kv_dtype": "fp8"}, {"quantization": "fp8", "kv_dtype": "fp8"}):
        moved = float((scores(directory, device, **options, **form) - before).abs().mean() / before.std())
        assert 0 < moved < MOVED, (form, moved)


def steps_run(directory: Path, device: str, **options: Any) -> Any:
    """Several requests decode together with everything in FP8; the engine, for a look at how."""
    engine = make_engine(directory, device=device, quantization="fp8", kv_dtype="fp8", **options)
    requests = {
        number: AddRequest(number, PROMPT[:length], SamplingParams(max_tokens=12, temperature=0))
        for number, length in enumerate((1, 7, 40))
    }
    outputs = run(engine, requests, dict.fromkeys(requests, 0))
    assert all(outputs.values())
    return engine
