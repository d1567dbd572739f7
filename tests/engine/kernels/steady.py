"""What Triton would build while an engine serves, by the interpreter: `python -m tests.engine.kernels.steady FAMILY`.

`FAMILY@fp8` has its weights in FP8, `@kv8` its cache, `@fp8+kv8` both; a family that sees is asked about images too.
Prints a line of JSON: for each kernel how many variants were there once the engine was loaded, and how many came with
requests of all kinds, which should be none. The interpreter builds nothing; it is counted what launches would be built
for.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"

from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

import tests.engine.kernels.interpreted_kernels  # noqa: F401  mends the interpreter
from engine.kernels import launches
from engine.messages import AddRequest
from engine.sampling_params import SamplingParams
from engine.sizing import steps
from tests.engine.sampling.reference import MIXES
from tests.engine.test_oracle import make_engine, run
from tests.engine.test_oracle_images import finish
from tests.tiny_models import build_tiny_model
from tests.vision_models import SEEING, Eyes, build_seeing_model

BACKEND = make_backend(GPUTarget("cuda", 90, 32))
Variants = dict[str, set[str]]


def counting(found: Variants) -> Any:
    """A `launch` that notes what Triton would build, and launches."""
    kernels: dict[str, Any] = {}

    def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        name = kernel.fn.__name__
        if name not in kernels:
            whole = JITFunction(kernel.fn, **kernel.kwargs)
            kernels[name] = create_function_from_signature(whole.signature, whole.params, BACKEND)
        found.setdefault(name, set()).add(str(kernels[name](*arguments, **options)[1]))
        launches.launch(kernel, grid, *arguments, **options)

    return launch


def requests() -> dict[int, AddRequest]:
    """Prompts of one token and of many, which meet; each way of sampling there is."""
    found = {}
    for number, params in enumerate(MIXES.values()):
        length = (1, 2, 5, 17, 40)[number % 5]
        prompt = [3 + (7 * at + number) % 200 for at in range(length)]
        found[number] = AddRequest(number, prompt, params)
    scored = SamplingParams(max_tokens=2, temperature=0, logprobs=3, prompt_logprobs=2)
    for length in (2, 30):
        found[len(found)] = AddRequest(len(found), [5] * length, scored)
    return found


def ask_about_images(ours: Any, eyes: Eyes) -> None:
    """Of several sizes, which meet, beside text."""
    text, params = [7, 19, 23, 5], SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
    for number, parts in enumerate([[text, (56, 56), text], [(28, 56, 1), 9, (56, 28, 2)], [text]]):
        eyes.add(ours, 1000 + number, parts, params)
    finish(ours)


FORMS = {"": {}, "fp8": {"quantization": "fp8"}, "kv8": {"kv_dtype": "fp8"}}


def main() -> int:
    """See the module's docstring."""
    found: Variants = {}
    with tempfile.TemporaryDirectory() as work, mock.patch.object(steps, "TOKEN_SIZES", (8, 64)):
        family, _, form = sys.argv[1].partition("@")
        options = {name: value for one in form.split("+") for name, value in FORMS[one].items()}
        eyes = None
        if family in SEEING:
            eyes = Eyes(family, build_seeing_model(family, Path(work) / "model"))
            directory = eyes.directory
        else:
            directory = build_tiny_model(family, Path(work) / "model", two_layers=True)
        for name, module in list(sys.modules.items()):
            if name.startswith("engine.") and module is not launches and hasattr(module, "launch"):
                module.launch = counting(found)  # type: ignore[attr-defined]
        ours: Any = make_engine(directory, attention="triton", device="cpu", graphs=True, max_batched_tokens=64,
                                max_num_seqs=8, **options)  # fmt: skip
        ours._runner.warm_up()  # as at the end of a load on a GPU
        built = {name: len(kinds) for name, kinds in found.items()}
        asked = requests()
        run(ours, asked, {number: number // 2 for number in asked})
        if eyes is not None:
            ask_about_images(ours, eyes)
    later = {name: len(kinds) - built.get(name, 0) for name, kinds in found.items()}
    print(json.dumps([built, {name: count for name, count in later.items() if count}]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
