"""Layers give their linears FP8 only where that was seen to be right on the device at hand."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

pytest.importorskip("triton", reason="needs triton, which comes with make test on Linux")

from engine.models import cuda_layer
from engine.models.fp8 import Fp8Linear, whole_rows


def linear(outputs: int = 64) -> Fp8Linear:
    return Fp8Linear.quantized(torch.randn(outputs, 32), None)


def plan(qkv: nn.Module) -> Any:
    norm = SimpleNamespace(weight=torch.ones(32))
    return SimpleNamespace(qkv=qkv, gate_up=linear(), mlp_norm=norm, activation="silu")


@pytest.mark.parametrize("is_right", [True, False])
def test_what_is_wrong_stays_apart(is_right: bool, caplog: pytest.LogCaptureFixture) -> None:
    plans = [None, plan(nn.Linear(32, 64)), plan(linear()), plan(linear())]
    with mock.patch.object(cuda_layer, "rounds_alike", return_value=is_right) as asked:
        assert cuda_layer._rounds_alike(plans) is is_right
    asked.assert_called_once_with(32, 32, "silu", torch.float32, torch.device("cpu"))
    assert ("they stay apart" in caplog.text) is not is_right


def test_only_a_linear_that_rounds_is_given_fp8() -> None:
    pending, fp8 = cuda_layer.Pending(), linear()
    assert pending.rounds_for(fp8) and not pending.rounds_for(nn.Linear(32, 64)) and not pending.rounds_for(None)
    with whole_rows(nn.Sequential(fp8)):
        assert not pending.rounds_for(fp8)
    pending.rounds = False
    assert not pending.rounds_for(fp8)
