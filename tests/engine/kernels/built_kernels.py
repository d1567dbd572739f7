"""The kernels for CUDA built for an architecture: `python -m tests.engine.kernels.built_kernels CAPABILITY PART PARTS`.

Building needs no GPU. Builds every PARTS-th kernel from the PART-th on. Prints a line of JSON for each kernel: name,
its shared memory in bytes, registers a thread, and bytes that were spilled because there were not enough of these.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.kernels import triton_attention, triton_filter, triton_fp8, triton_layer, triton_linear, triton_sampler
from engine.kernels.launch_shapes import default_shape, launch_key

_PTXAS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.DOTALL)


def attention(
    dim: int,
    group: int,
    *,
    latent: int | None = None,
    prompt: bool,
    splits: int = 1,
    softcap: bool = False,
    window: bool = False,
    fp8_cache: bool = False,
) -> Any:
    """A build of the attention kernel as `paged_attention` would launch it.

    With `latent` so many of the keys' numbers are the values.
    """
    shape = default_shape(launch_key(dim, group, is_prompt=prompt, is_latent=latent is not None))
    heads, v_dim = min(group, shape.rows), latent or dim
    constants = {
        "GROUP": group, "HEADS": heads, "BLOCK_SIZE": 16, "DIM": dim, "V_DIM": v_dim,
        "DIM_PAD": triton_attention.padded(dim), "V_DIM_PAD": triton_attention.padded(v_dim),
        "REST_PAD": 0 if latent is None else triton_attention.padded(dim - latent),
        "ROWS": shape.rows, "TOKENS": shape.rows // heads, "TILE": shape.tile, "SPLIT": splits > 1,
        "SOFTCAP": softcap, "WINDOW": window, "ONE_QUERY": not prompt, "PRECISION": "tf32",
    }  # fmt: skip
    types = {name: "*bf16" for name in ("q", "k_cache", "v_cache", "out")}
    if fp8_cache:
        types |= {name: "*fp8e4nv" for name in ("k_cache", "v_cache")}
    types |= {name: "*i32" for name in ("tables", "lens", "starts")}
    types |= {name: "*fp32" if splits > 1 else "*bf16" for name in ("part_max", "part_sum", "part_acc")}
    types |= {name: "fp32" for name in ("scale", "softcap")}
    options = {"num_warps": shape.num_warps, "num_stages": shape.num_stages}
    return triton_attention.attend_kernel, types, constants, options


def layer(kernel: Any, pointers: str, constants: dict[str, Any], num_warps: int) -> Any:
    """A build of one of the small kernels in bf16."""
    types = {name: "*bf16" for name in pointers.split()} | {"eps": "fp32", "slots": "*i64"}
    return kernel, types, constants, {"num_warps": num_warps}


FP8 = 89
"""The first capability whose processors turn numbers into e4m3; Triton has no conversion for older ones."""


def builds(capability: int) -> Iterator[tuple[str, Any]]:
    """Every kernel, in the shapes of the recommended models; with `FP8` in their names those of capability 8.9."""
    yield from plain_builds()
    yield from product_builds()
    yield from sampler_builds()
    if capability >= FP8:
        yield from fp8_builds()


def fp8_builds() -> Iterator[tuple[str, Any]]:
    """The kernels that read or write e4m3."""
    for dim, group in ((64, 3), (96, 1), (128, 4), (128, 8), (256, 2)):
        gemma = {"softcap": dim == 256, "window": dim == 256, "fp8_cache": True}
        yield f"attention of prompts, FP8 cache, {dim}, group of {group}", attention(dim, group, prompt=True, **gemma)
        for splits in (1, 8):
            name = f"attention, FP8 cache, {dim}, group of {group}, {splits} parts"
            yield name, attention(dim, group, prompt=False, splits=splits, **gemma)
    for prompt in (False, True):
        name = f"attention on latents, FP8 cache, prompts {prompt}"
        yield name, attention(576, 128, latent=512, prompt=prompt, splits=1 if prompt else 8, fp8_cache=True)
    for dim, turned in ((64, 64), (96, 96), (128, 128), (128, 32), (256, 256)):
        kernel, types, constants, options = rotary(dim, turned)
        types |= {name: "*fp8e4nv" for name in ("k_cache", "v_cache")} | {"key_offset": "*fp32"}
        constants |= {"OFFSET": True}
        yield f"rotary of {turned} of {dim}, FP8 cache", (kernel, types, constants, options)
    for dim in (576, 1536, 4096, 8192, 14336, 28672):
        pad = triton.next_power_of_2(dim)
        types = {"x": "*bf16", "out": "*fp8e4nv", "scales": "*fp32"}
        constants = {"SMALLEST": 1e-12, "DIM_PAD": pad}
        options = {"num_warps": triton_layer.warps(pad)}
        yield f"rows of {dim} to FP8", (triton_fp8.quantize_rows_kernel, types, constants, options)


def rotary(dim: int, turned: int) -> Any:
    """A build of the rotary kernel."""
    constants = {"HEADS": 32, "KV_HEADS": 8, "DIM": dim, "ROTARY": turned, "NORM": True, "PLUS_ONE": True,
                 "OFFSET": False,
                 "HALF_PAD": triton.next_power_of_2(turned // 2), "TILE": triton_layer.HEADS_TILE,
                 "REST_PAD": triton.next_power_of_2(max(1, dim - turned))}  # fmt: skip
    pointers = "qkv cos sin q_weight k_weight q_out k_cache v_cache key_offset"
    return layer(triton_layer.rotate_write_kernel, pointers, constants, 4)


def plain_builds() -> Iterator[tuple[str, Any]]:
    """The kernels in bf16."""
    for dim, group in ((64, 3), (64, 4), (96, 1), (128, 4), (128, 6), (128, 5), (128, 8), (256, 2)):
        gemma = {"softcap": dim == 256, "window": dim == 256}
        yield f"attention of prompts, {dim}, group of {group}", attention(dim, group, prompt=True, **gemma)
        for splits in (1, 8):
            name = f"attention, {dim}, group of {group}, {splits} parts"
            yield name, attention(dim, group, prompt=False, splits=splits, **gemma)
    for group in (16, 128):
        yield f"attention of prompts on latents, group of {group}", attention(576, group, latent=512, prompt=True)
        for splits in (1, 8):
            name = f"attention on latents, group of {group}, {splits} parts"
            yield name, attention(576, group, latent=512, prompt=False, splits=splits)
    for dim in (64, 128, 256):
        types = {"out": "*bf16", "part_acc": "*fp32", "part_max": "*fp32", "part_sum": "*fp32"}
        constants = {"V_DIM": dim, "WIDTH": dim, "SPLITS": triton_attention.MAX_SPLITS}
        yield f"join of parts, {dim}", (triton_attention.join_splits_kernel, types, constants, {"num_warps": 4})
    for dim in (576, 1536, 4096, 5120, 8192, 16384):
        pad = triton.next_power_of_2(dim)
        constants = {"ADD": True, "NORM_X": True, "PLUS_ONE": True, "DIM_PAD": pad}
        kernel, pointers = triton_layer.add_rms_norm_kernel, "x residual weight x_weight out"
        yield f"norm of {dim}", layer(kernel, pointers, constants, triton_layer.warps(pad))
    for gelu in (False, True):
        constants = {"GELU": gelu, "TILE": 1024}
        yield f"activation, gelu {gelu}", layer(triton_layer.activate_mul_kernel, "gate_up out", constants, 4)
    for dim, turned in ((64, 64), (96, 96), (128, 128), (128, 32), (256, 256)):
        yield f"rotary of {turned} of {dim}", rotary(dim, turned)


def product_builds() -> Iterator[tuple[str, Any]]:
    """Products of few rows, in every launch shape."""
    types = {name: "*bf16" for name in ("x", "weight", "bias", "out")}
    for rows in (1, triton_linear.MOST_ROWS):
        for outputs, tile, num_warps in triton_linear.shapes_for(rows):
            constants: dict[str, Any] = {"BIAS": True, "OUTPUTS": outputs, "TILE": tile}
            options = {"num_warps": num_warps}
            kernel = triton_linear.one_row_kernel
            if rows > 1:
                kernel = triton_linear.few_rows_kernel
                constants |= {"ROWS": rows, "PRECISION": "tf32"}
                options["num_stages"] = triton_linear.STAGES
            yield f"product of {rows} rows, {outputs}x{tile}", (kernel, types, constants, options)


def sampler_builds() -> Iterator[tuple[str, Any]]:
    """The sampler's kernels, for vocabularies of up to 262,144 tokens."""
    floats = "out repetition frequency presence temperatures top_ps min_ps bests thresholds scores"
    floats += " peaks masses floors candidates"
    types = {name: "*fp32" for name in floats.split()} | {"in_prompt": "*i1", "x": "*fp32", "logits": "*bf16"}
    types |= {name: "*i32" for name in ("counts", "words", "tokens", "broken", "packed")} | {"totals": "*i64"}
    types |= {name: "*i64" for name in ("slots", "mask_rows", "top_ks", "keys", "token_ids", "last_tokens")}
    tile = {"TILE": triton_sampler.TILE}
    tiles = {"TILES_PAD": 262_144 // triton_sampler.TILE}
    options = {"num_warps": 4}
    for penalties, mask in ((True, True), (False, True), (False, False)):
        constants = {"PENALTIES": penalties, "MASK": mask} | tile
        yield f"adjusting, {penalties}, {mask}", (triton_sampler.adjust_kernel, types, constants, options)
    peak = tile | {"PEAK": triton_filter.PEAK}
    yield "peaks", (triton_filter.peaks_kernel, types, peak, options)
    yield "floors", (triton_filter.floors_kernel, types, peak | tiles, {"num_warps": 8})
    yield "candidates", (triton_filter.gather_kernel, types, peak, options)
    yield "thresholds", (triton_filter.thresholds_kernel, types, tile, {"num_warps": 8})
    for hot in (False, True):
        own = types if hot else types | {"x": "*bf16"}
        yield f"race, hot {hot}", (triton_sampler.race_kernel, own, {"HOT": hot} | tile, options)
    yield "choice", (triton_sampler.choose_kernel, types, tiles, {"num_warps": 1})


def build(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, Any], capability: int
) -> tuple[int, int, int]:
    """Compile one kernel; its shared memory, registers and spills."""
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    pointers = [at for at, name in enumerate(kernel.arg_names) if signature[name][0] == "*"]
    # As at a launch: memory is aligned, and strides are multiples of a head's width, but where it differs by step.
    strides = [at for at, name in enumerate(kernel.arg_names) if name.endswith("_stride")]
    known = [param.num for param in kernel.params
             if not (param.do_not_specialize or param.do_not_specialize_on_alignment)]  # fmt: skip
    aligned = {(at,): [["tt.divisibility", 16]] for at in [*pointers, *strides] if at in known}
    constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = measure(built.asm["ptx"], capability)
    return built.metadata.shared, registers, spilled


def measure(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and spilled bytes, by the assembler that Triton brings."""
    suffix = "a" if capability >= 90 else ""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    assembler = folder / ("ptxas-blackwell" if capability >= 100 and (folder / "ptxas-blackwell").exists() else "ptxas")
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(assembler), "-v", f"--gpu-name=sm_{capability}{suffix}", str(source), "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = _PTXAS.search(said)
    assert found is not None, said
    stores, loads, registers = map(int, found.groups())
    return registers, stores + loads


def main() -> int:
    """Build this part."""
    capability, part, parts = map(int, sys.argv[1:])
    for name, (kernel, types, constants, options) in itertools.islice(builds(capability), part, None, parts):
        shared, registers, spilled = build(kernel, types, constants, options, capability)
        print(json.dumps([name, shared, registers, spilled]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
