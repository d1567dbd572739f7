"""Which device is computed on, as far as a machine without a GPU can tell."""

import platform

import pytest
import torch

from engine.device.device import select_device, select_dtype


@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_that_is_chosen_is_the_current_one(name: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert select_device(name) == torch.device("cuda", index)
    assert chosen == [torch.device("cuda", index)]
    assert not torch.backends.cudnn.allow_tf32, "towers would be computed less exactly than in fp32"


@pytest.mark.parametrize(
    ("machine", "taken", "instructions", "dtype"),
    [
        ("x86_64", True, True, torch.bfloat16),
        ("x86_64", True, False, torch.float32),  # AVX512 without bf16, as of Cascade Lake and Ice Lake
        ("x86_64", False, False, torch.float32),
        ("aarch64", True, False, torch.bfloat16),
        ("aarch64", False, False, torch.float32),
    ],
)
def test_a_processor_that_would_emulate_bf16_computes_in_float32(
    machine: str, taken: bool, instructions: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: taken)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    for checkpoint in (torch.bfloat16, torch.float16, torch.float32):
        assert select_dtype("auto", checkpoint, torch.device("cpu")) is dtype
        assert select_dtype("bfloat16", checkpoint, torch.device("cpu")) is torch.bfloat16
