"""What the recommended models launch: `python -m tests.engine.kernels.real_launches FILE` writes it, pickled.

Their widths are their own; layers are as few as have all kinds, and vocabularies are short, which no kernel sees.
"""

import json
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from engine.weights.random_model import shipped_config
from tests.engine.kernels.noted import Noted, load, noting

MODELS = ("SmolLM2-135M-Instruct", "Gemma-2-2b", "DeepSeek-R1-Distill-Qwen-1.5B", "Llama-3.1-8B", "Phi-4",
          "Qwen2.5-Coder-32B", "Qwen2.5-VL-7B", "Llama-3.2-11B-Vision", "Llama-3.3-70B", "DeepSeek-R1")  # fmt: skip
SMALLER = {"vocab_size": 512, "num_hidden_layers": 3, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
"""Three layers: of FP8, of a mixture if there is one, and the last, which stays in 16 bits."""
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
FP8: dict[str, Any] = {"quantization": "fp8", "kv_dtype": "fp8"}


class Launch(NamedTuple):
    """A `Build`, whose kernel is found by name."""

    module: str
    name: str
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]


def config_of(name: str) -> dict[str, Any]:
    """A model's configuration, its last part shorter."""
    config = shipped_config(name)
    assert config is not None
    text = config.get("text_config", config)
    text.update({key: value for key, value in SMALLER.items() if key in text})
    for key in ("first_k_dense_replace", "moe_intermediate_size"):
        if key in text:
            text[key] = {"first_k_dense_replace": 1, "moe_intermediate_size": 128}[key]
    if isinstance(kinds := text.get("layer_types"), list):
        text["layer_types"] = kinds[: text["num_hidden_layers"]]
    if "cross_attention_layers" in text:
        text["cross_attention_layers"] = [1]
    return config


def launches() -> Noted:
    """Of all models, in 16 bits and in FP8."""
    with noting() as noted, tempfile.TemporaryDirectory() as work:
        for name in MODELS:
            path = Path(work) / name
            path.mkdir()
            config = config_of(name)
            for number, options in enumerate(({}, FP8)):
                form = config | ({"quantization_config": BLOCKS} if options and name == "DeepSeek-R1" else {})
                file = path / f"{number}.json"
                file.write_text(json.dumps(form))
                own = {"kv_dtype": "fp8"} if form is not config and "quantization_config" in form else options
                before = len(noted.builds)
                load(f"random://{file}", memory="1GiB", context=4096, **own)
                print(name, own, len(noted.builds) - before, flush=True)
    return noted


def main() -> int:
    """See the module's docstring."""
    found = [
        Launch(build.kernel.fn.__module__, build.kernel.fn.__name__, build.signature, build.constants,
               build.attributes, build.options)
        for build in launches().builds.values()
    ]  # fmt: skip
    Path(sys.argv[1]).write_bytes(pickle.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
