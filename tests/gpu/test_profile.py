"""In a steady state the GPU does not wait for Python: a profile of decoding steps, at a size where a step is short."""

from pathlib import Path

import pytest
import torch

from bench.gpu.engines import EngineBench
from bench.gpu.idle import WAIT_MICROSECONDS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

MODEL = (
    "llama?hidden_size=4096&intermediate_size=14336&num_hidden_layers=16&num_attention_heads=32"
    "&num_key_value_heads=8&vocab_size=128256&max_position_embeddings=4096"
)
"""Half of Llama-3.1-8B: a step reads 8 GB, which takes some 2 ms on the fastest GPUs of its time."""
WAITING_LIMIT = 0.05
"""Of the time, in gaps of more than `WAIT_MICROSECONDS`."""


@pytest.mark.parametrize("batch", [1, 32])
def test_the_gpu_does_not_wait_for_python(batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path))
    bench = EngineBench(MODEL, torch.device("cuda"), None, context=2048, max_num_seqs=32)
    try:
        found = bench.idle(batch, 512)
    finally:
        bench.close()
    assert found["waiting"] <= WAITING_LIMIT, (WAIT_MICROSECONDS, found)
