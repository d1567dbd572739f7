"""Where kernels are checked: on the GPU there is, or under Triton's interpreter if TRITON_INTERPRET is 1."""

import os

import torch

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
DTYPES = (torch.float32, torch.float16) if DEVICE.type == "cpu" else tuple(TOLERANCE)
"""The interpreter computes products of bf16 wrongly."""
HAS_FP8 = DEVICE.type == "cpu" or torch.cuda.get_device_capability() >= (8, 9)
"""Triton turns numbers into e4m3 on these GPUs."""


def there(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors on the device, with the strides they have."""
    return [tensor.to(DEVICE) for tensor in tensors]
