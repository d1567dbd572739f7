"""Which device is computed on, as far as a machine without a GPU can tell."""

import pytest
import torch

from engine.device.device import select_device


@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_that_is_chosen_is_the_current_one(name: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert select_device(name) == torch.device("cuda", index)
    assert chosen == [torch.device("cuda", index)]
