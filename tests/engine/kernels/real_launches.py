"""What the recommended models launch: `python -m tests.engine.kernels.real_launches FILE` writes it, pickled.

A few of them stand for all but under HEADRACE_SOAK=1. Their widths and vocabularies are their own; layers are as few as
have all kinds.
"""

import json
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from engine.sizing import steps
from engine.weights.random_model import shipped_config
from tests.engine.kernels.noted import Noted, load, noting
from tests.soaking import SOAK

MODELS = ("SmolLM2-135M-Instruct", "Gemma-2-2b", "DeepSeek-R1-Distill-Qwen-1.5B", "Llama-3.1-8B", "Phi-4",
          "Qwen2.5-Coder-32B", "Qwen2.5-7B", "Llama-3.3-70B", "DeepSeek-R1")  # fmt: skip
"""Qwen2.5-VL-7B has the decoder of Qwen2.5-7B, Llama-3.2-11B-Vision that of Llama-3.1-8B."""
FEW_MODELS = ("SmolLM2-135M-Instruct", "Gemma-2-2b", "Llama-3.1-8B", "DeepSeek-R1")
"""Of each kind of attention; `make soak` takes them all."""
LAYERS = 3
"""Of FP8, of a mixture if there is one, and the last, which stays in 16 bits."""
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
MIXTURE = {"first_k_dense_replace": 1, "moe_intermediate_size": 128}


class Launch(NamedTuple):
    """A `Build`, whose kernel is found by name."""

    module: str
    name: str
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]


def config_of(name: str) -> dict[str, Any]:
    """A model's configuration, with fewer layers and smaller experts."""
    config = shipped_config(name)
    assert config is not None
    config["num_hidden_layers"] = LAYERS
    config |= {key: value for key, value in MIXTURE.items() if key in config}
    if isinstance(kinds := config.get("layer_types"), list):
        config["layer_types"] = kinds[:LAYERS]
    return config


def launches() -> Noted:
    """Of all models, in 16 bits and in FP8: quantised at load, or as DeepSeek-R1's own checkpoint has it."""
    few_sizes = mock.patch.object(steps, "TOKEN_SIZES", (64, 512))  # plain steps have the others
    with noting() as noted, tempfile.TemporaryDirectory() as work, few_sizes:
        for name in MODELS if SOAK else FEW_MODELS:
            config, is_mixture = config_of(name), name == "DeepSeek-R1"
            blocks = {"quantization_config": BLOCKS} if is_mixture else {}
            for form in (config, config | blocks):
                file = Path(work) / "config.json"
                file.write_text(json.dumps(form))
                options: dict[str, Any] = {"max_batched_tokens": 4096} if is_mixture else {}
                if form is not config:
                    options |= {"kv_dtype": "fp8"} | ({} if blocks else {"quantization": "fp8"})
                load(f"random://{file}", memory="1GiB", context=4096, max_num_seqs=32, **options)
    return noted


def main() -> int:
    """See the module's docstring."""
    found = [
        (build.kernel.fn.__module__, build.kernel.fn.__name__, build.signature, build.constants,
               build.attributes, build.options)
        for build in launches().builds.values()
    ]  # fmt: skip
    # Not as `Launch`, which is of another module where this one is run.
    Path(sys.argv[1]).write_bytes(pickle.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
