"""Two ranks whose layers are CUDA's, under Triton's interpreter: `python -m tests.engine.ranks.interpreted DIRECTORY`.

Prints what `check` found. The other rank is this module too: `... interpreted follow FD`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import tests.engine.kernels.interpreted_kernels  # before anything of Triton: it patches the interpreter  # noqa: F401
from engine.messages import AddRequest
from engine.models.cuda_layer import CudaDecoderLayer
from engine.models.small_products import SmallProduct
from engine.models.split import RowParallel, VocabHead
from engine.ranks import follower, team
from engine.sampling_params import SamplingParams
from tests.engine.ranks.engines import shared_engine
from tests.engine.test_oracle import run

TOKENS = 3


def prompts() -> dict[int, list[int]]:
    """Two that meet in a step, of different lengths."""
    return {number: [3 + (7 * at + number) % 200 for at in range(length)] for number, length in enumerate((9, 2))}


def check(directory: Path) -> dict[str, Any]:
    """Answers, and what the layers of rank 0 are made of."""
    team.COMMAND = (sys.executable, "-P", "-m", "tests.engine.ranks.interpreted", "follow")
    params = SamplingParams(max_tokens=TOKENS, temperature=0)
    requests = {number: AddRequest(number, prompt, params) for number, prompt in prompts().items()}
    with shared_engine(directory, attention="triton", max_batched_tokens=24) as engine:
        runner = engine._runner._runner  # type: ignore[attr-defined]
        outputs = run(engine, requests, {0: 0, 1: 1})
        layers = [module for module in runner.model.modules() if isinstance(module, CudaDecoderLayer)]
        return {
            "outputs": [outputs[number] for number in requests],
            "layers": len(layers),
            "launches": runner.launches_per_layer,
            "sums": [type(getattr(layer, name)) is RowParallel for layer in layers for name in ("output", "down")],
            "ours": [
                *(type(getattr(layer, name).linear) is SmallProduct for layer in layers for name in ("output", "down")),
                *(type(getattr(layer, name)) is SmallProduct for layer in layers for name in ("qkv", "gate_up")),
                type(runner.model.lm_head) is VocabHead and type(runner.model.lm_head.lm_head) is SmallProduct,
            ],
        }


def main() -> int:
    """See the module's docstring."""
    if sys.argv[1] == "follow":
        del sys.argv[1]
        return follower.main()
    print(json.dumps(check(Path(sys.argv[1]))), flush=True)
    return 0


if __name__ == "__main__":
    code = main()
    os._exit(code)
