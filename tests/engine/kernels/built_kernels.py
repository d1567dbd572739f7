"""The kernels for CUDA built for an architecture: `python -m tests.engine.kernels.built_kernels CAPABILITY PART PARTS`.

Building needs no GPU. Builds every PARTS-th kernel from the PART-th on, and prints a `Line` of JSON for each.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.kernels import (
    launches,
    triton_attention,
    triton_experts,
    triton_filter,
    triton_fp8,
    triton_layer,
    triton_linear,
    triton_pieces,
    triton_rounded,
    triton_router,
    triton_sampler,
)
from engine.kernels.launch_shapes import LaunchShape, default_shape, launch_key
from engine.kernels.reference import FEW_ROWS
from engine.kernels.triton_pieces import lay_out
from tests.engine.kernels import assembly
from tests.engine.kernels.assembly import Assembly, programs_per_processor


class Line(NamedTuple):
    """What came of a build."""

    name: str
    shared: int
    """Bytes of shared memory."""
    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread: what it puts away because registers do not suffice."""
    programs: int
    """That a processor has room for."""
    loops: list[int]
    """Of attention: of each loop the instructions that a warp takes for 1,000 scores."""
    waits: int
    """For the kernel before, in a dependent launch."""
    early: list[str]
    """What the kernel does before it has waited and may not; see `Assembly`."""


def attention(
    dim: int,
    group: int,
    *,
    latent: int | None = None,
    prompt: bool,
    softcap: bool = False,
    window: bool = False,
    kv_bytes: int = 2,
    wide_queries: bool = False,
    shape: LaunchShape | None = None,
) -> Any:
    """A build of the attention kernel as `paged_attention` would launch it.

    With `latent` so many of the keys' numbers are the values; `kv_bytes` are 1 for a cache in FP8, 4 for fp32.
    `wide_queries` are in fp32 whatever the cache is in.
    """
    key = launch_key(
        dim, group, is_prompt=prompt, is_latent=latent is not None, kv_bytes=4 if wide_queries else kv_bytes
    )
    shape = shape or default_shape(key)
    heads, v_dim = min(group, shape.rows), latent or dim
    tokens = shape.rows // heads if prompt else 1
    constants = {
        "GROUP": group, "HEADS": heads, "BLOCK_SIZE": 16, "DIM": dim, "V_DIM": v_dim,
        "DIM_PAD": triton_attention.padded(dim), "V_DIM_PAD": triton_attention.padded(v_dim),
        "REST_PAD": 0 if latent is None else triton_attention.padded(dim - latent),
        "ROWS": shape.rows, "TOKENS": tokens, "TILE": shape.tile, "SOFTCAP": softcap, "WINDOW": window,
        "PRECISION": "ieee" if wide_queries or kv_bytes == 4 else "tf32", "PIECE": triton_pieces.PIECE,
        "WHOLE": prompt and not window,
    }  # fmt: skip
    kept = {1: "*fp8e4nv", 2: "*bf16", 4: "*fp32"}[kv_bytes]
    types = {name: "*fp32" if wide_queries else "*bf16" if kv_bytes == 1 else kept for name in ("q", "out")}
    types |= {name: kept for name in ("k_cache", "v_cache")}
    types |= {name: "*i32" for name in ("tables", "pieces")}
    types |= {name: "*fp32" for name in ("part_max", "part_sum", "part_acc")}
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
    yield from product_builds(capability)
    yield from expert_builds()
    yield from sampler_builds()
    if capability >= FP8:
        yield from fp8_builds()


def fp8_builds() -> Iterator[tuple[str, Any]]:
    """The kernels that read or write e4m3."""
    for dim, group in ((64, 3), (96, 1), (128, 4), (128, 8), (256, 2)):
        gemma = {"softcap": dim == 256, "window": dim == 256, "kv_bytes": 1}
        yield f"attention of prompts, FP8 cache, {dim}, group of {group}", attention(dim, group, prompt=True, **gemma)
        yield f"attention, FP8 cache, {dim}, group of {group}", attention(dim, group, prompt=False, **gemma)
    for dim, prompt in itertools.product((64, 128, 256), (True, False)):
        build = attention(dim, 4, prompt=prompt, kv_bytes=1, wide_queries=True)
        yield f"attention in fp32, FP8 cache, {dim}, prompts {prompt}", build
    for prompt in (False, True):
        name = f"attention on latents, FP8 cache, prompts {prompt}"
        yield name, attention(576, 128, latent=512, prompt=prompt, kv_bytes=1)
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
    types = dict.fromkeys(("x", "residual", "weight", "x_weight", "gate_up"), "*bf16")
    types |= {"numbers": "*fp8e4nv", "scales": "*fp32", "eps": "fp32"}
    for dim in (576, 1536, 4096, 5120, 8192, 14336, 16384):
        pad = triton.next_power_of_2(dim)
        constants = {"ADD": True, "NORM_X": True, "PLUS_ONE": True, "SMALLEST": 1e-12, "DIM_PAD": pad}
        options = {"num_warps": triton_layer.warps(pad)}
        yield f"norm of {dim} to FP8", (triton_rounded.add_rms_norm_rounded_kernel, types, constants, options)
        constants = {"GELU": True, "SMALLEST": 1e-12, "DIM_PAD": pad}
        yield f"activation of {dim} to FP8", (triton_rounded.activate_mul_rounded_kernel, types, constants, options)
    for activate in (False, True):
        types = {"x": "*bf16", "out": "*fp8e4nv", "scales": "*fp32"}
        constants = {"ACTIVATE": activate, "GELU": False, "SMALLEST": 1e-12, "BLOCK": 128,
                     "GROUPS": triton_fp8.GROUPS}  # fmt: skip
        kernel = triton_fp8.quantize_groups_kernel
        yield f"groups to FP8, activated {activate}", (kernel, types, constants, {"num_warps": 4})
    for outputs, tile, num_warps, num_stages in triton_fp8.FEW_ROWS_SHAPES:
        types = {"x": "*fp8e4nv", "weight": "*fp8e4nv", "x_scale": "*fp32", "scale": "*fp32"}
        types |= {"bias": "*bf16", "out": "*bf16"}
        constants = {"BIAS": True, "EVEN": True, "ROWS": FEW_ROWS, "OUTPUTS": outputs, "TILE": tile}
        options = {"num_warps": num_warps, "num_stages": num_stages}
        yield f"few rows in FP8, {outputs}x{tile}", (triton_fp8.few_rows_kernel, types, constants, options)
    for rows, shape in triton_fp8.FP8_SHAPES.items():
        types = {"x": "*fp8e4nv", "weight": "*fp8e4nv", "x_scale": "*fp32", "weight_scale": "*fp32"}
        types |= {"bias": "*bf16", "out": "*bf16"}
        constants = {"BIAS": True, "EVEN": True, "ROWS": rows, "OUTPUTS": shape.outputs, "BLOCK": 128}
        options = {"num_warps": shape.num_warps, "num_stages": shape.num_stages}
        kernel = triton_fp8.block_product_kernel
        yield (
            f"blocks in FP8, tiles of {rows} rows",
            (kernel, types, constants, options),
        )
        for from_tokens in (True, False):
            build = expert_product(rows, from_tokens=from_tokens, fp8=True)
            yield f"experts in FP8, tiles of {rows} rows, from tokens {from_tokens}", build


def piece_builds() -> Iterator[tuple[str, Any]]:
    """What deals out a step's keys, and what joins them."""
    for group, queries, window in ((4, 1, False), (4, 64, False), (2, 64, True)):
        layout = lay_out(
            128, group, 8, is_latent=False, kv_bytes=2, num_tokens=16 * queries, num_seqs=16, max_query_len=queries,
            num_processors=132,
        )  # fmt: skip
        types = {name: "*i32" for name in ("lens", "starts", "pieces", "joins")}
        constants = triton_pieces.cut_constants(layout, window)
        yield f"pieces of {layout.tokens} tokens", (triton_pieces.cut_kernel, types, constants, {"num_warps": 4})
        for dim in (64, 128, 256, 512):
            types = {"joins": "*i32", "out": "*bf16"}
            types |= {name: "*fp32" for name in ("part_acc", "part_max", "part_sum")}
            constants = triton_attention.join_constants(layout, dim)
            build = (triton_attention.join_kernel, types, constants, {"num_warps": 4})
            yield f"join of {dim} of {layout.tokens} tokens", build


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
        yield f"attention, {dim}, group of {group}", attention(dim, group, prompt=False, **gemma)
    likely = attention(128, 4, prompt=True, shape=LaunchShape(128, 64, 8, 3))
    yield "attention of prompts, 128, group of 4, 128x64/8/3", likely
    five = attention(128, 4, prompt=False, shape=LaunchShape(16, 64, 4, 5))
    yield "attention, 128, group of 4, five stages", five
    for group in (16, 128):
        for prompt in (True, False):
            name = f"attention on latents, group of {group}, prompts {prompt}"
            yield name, attention(576, group, latent=512, prompt=prompt)
    for dim, prompt in itertools.product((64, 128, 256), (True, False)):
        yield f"attention in fp32, {dim}, prompts {prompt}", attention(dim, 4, prompt=prompt, kv_bytes=4)
    yield "attention on latents in fp32", attention(576, 128, latent=512, prompt=True, kv_bytes=4)
    yield from piece_builds()
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


def product_builds(capability: int) -> Iterator[tuple[str, Any]]:
    """Products of few rows, in every launch shape."""
    types = {name: "*bf16" for name in ("x", "weight", "bias", "out")}
    for rows in (1, FEW_ROWS):
        for outputs, tile, num_warps in triton_linear.shapes_for(rows):
            constants: dict[str, Any] = {"BIAS": True, "OUTPUTS": outputs, "TILE": tile}
            options = {"num_warps": num_warps}
            kernel = triton_linear.one_row_kernel
            if rows > 1:
                kernel = triton_linear.few_rows_kernel
                constants |= {"ROWS": rows, "PRECISION": "tf32"}
                options["num_stages"] = triton_linear.stages_for(divmod(capability, 10))
            yield f"product of {rows} rows, {outputs}x{tile}", (kernel, types, constants, options)


def expert_product(rows: int, *, from_tokens: bool, fp8: bool, even: bool = True) -> Any:
    """A build of a product by expert as of DeepSeek-R1: 8 of 256 experts of 2,048 by 7,168."""
    shape = (triton_fp8.FP8_SHAPES if fp8 else triton_experts.SHAPES)[rows]
    kind = "*fp8e4nv" if fp8 else "*bf16"
    types = {"x": kind, "weight": kind, "out": "*bf16", "counts": "*i32", "order": "*i32"}
    types |= {"x_scale": "*fp32" if fp8 else kind, "weight_scale": "*fp32" if fp8 else kind}
    constants = {
        "CHOICES": 8, "PARTS": 2 if from_tokens else 1, "FROM_TOKENS": from_tokens, "FP8": fp8, "EVEN": even,
        "EXPERTS_PAD": 256, "ROWS": rows, "OUTPUTS": shape.outputs, "TILE": shape.tile, "BLOCK": 128,
        "PRECISION": "tf32",
    }  # fmt: skip
    options = {"num_warps": shape.num_warps, "num_stages": shape.num_stages}
    return triton_experts.grouped_product_kernel, types, constants, options


def expert_builds() -> Iterator[tuple[str, Any]]:
    """The kernels of mixtures, in every launch shape."""
    for tile in (32, triton_experts.PLACE_TILE):
        types = {"index": "*i64", "counts": "*i32", "order": "*i32"}
        options = {"num_warps": max(1, min(8, tile // 256))}
        yield f"pairs by expert, {tile}", (triton_experts.place_rows_kernel, types, {"TILE": tile}, options)
    types = {"pairs": "*bf16", "weights": "*fp32", "out": "*bf16"}
    constants = {"CHOICES": 8, "TILE": triton_experts.SUM_TILE}
    yield "rows of experts summed", (triton_experts.sum_rows_kernel, types, constants, {"num_warps": 4})
    for groups, size, sigmoid in ((8, 32, True), (1, 256, True), (1, 128, False), (1, 8, False)):
        constants = {
            "SIGMOID": sigmoid, "BIAS": sigmoid, "NORMALISE": True, "CHOICES": 8, "CHOICES_PAD": 8, "GROUPS": groups,
            "TOP_GROUPS": max(1, groups // 2), "GROUPS_PAD": groups, "SIZE": size, "SIZE_PAD": size,
        }  # fmt: skip
        types = {"logits": "*fp32", "bias": "*fp32", "index": "*i64", "weights": "*fp32"}
        types |= {"epsilon": "fp32", "scaling": "fp32"}
        build = (triton_router.choose_kernel, types, constants, {"num_warps": 1})
        yield f"router, {groups} groups of {size}, sigmoid {sigmoid}", build
    for rows in triton_experts.SHAPES:
        for from_tokens in (True, False):
            build = expert_product(rows, from_tokens=from_tokens, fp8=False, even=from_tokens)
            yield f"experts, tiles of {rows} rows, from tokens {from_tokens}", build


def sampler_builds() -> Iterator[tuple[str, Any]]:
    """The sampler's kernels, for vocabularies of up to 262,144 tokens."""
    floats = "out repetition frequency presence temperatures top_ps min_ps bests thresholds scores"
    floats += " peaks masses lows floors scales candidates"
    types = {name: "*fp32" for name in floats.split()} | {"in_prompt": "*i1", "x": "*fp32", "logits": "*bf16"}
    types |= {name: "*i32" for name in ("counts", "words", "tokens", "broken", "packed")}
    types |= {name: "*i64" for name in ("slots", "mask_rows", "top_ks", "keys", "token_ids", "last_tokens")}
    types |= {"totals": "*i64", "bins": "*i64"}
    tile = {"TILE": triton_sampler.TILE}
    tiles = {"TILES_PAD": 262_144 // triton_sampler.TILE}
    options = {"num_warps": 4}
    for penalties, mask in ((True, True), (False, True), (False, False)):
        constants = {"PENALTIES": penalties, "MASK": mask} | tile
        yield f"adjusting, {penalties}, {mask}", (triton_sampler.adjust_kernel, types, constants, options)
    peak, bins = tile | {"PEAK": triton_filter.PEAK}, {"BINS": triton_filter.BINS}
    wide = bins | {"LISTED": triton_filter.LISTED}
    yield "peaks", (triton_filter.peaks_kernel, types, peak, options)
    yield "floors", (triton_filter.floors_kernel, types, peak | tiles | bins, {"num_warps": 8})
    yield "candidates", (triton_filter.gather_kernel, types, peak | wide, options)
    yield "thresholds", (triton_filter.thresholds_kernel, types, tile | wide, {"num_warps": 16})
    for hot in (False, True):
        own = types if hot else types | {"x": "*bf16"}
        yield f"race, hot {hot}", (triton_sampler.race_kernel, own, {"HOT": hot} | tile, options)
    yield "choice", (triton_sampler.choose_kernel, types, tiles, {"num_warps": 1})


DEPENDENT = 90
"""The first capability whose launches may be dependent."""


def build(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, Any], capability: int
) -> tuple[int, Assembly]:
    """Compile one kernel, for dependent launches if it can: its bytes of shared memory, and its assembly."""
    if kernel.arg_names[-1] == launches.DEPENDENT:
        constants = constants | {launches.DEPENDENT: capability >= DEPENDENT}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    pointers = [at for at, name in enumerate(kernel.arg_names) if signature[name][0] == "*"]
    # As at a launch: memory is aligned, and strides are multiples of a head's width, but where it differs by step; so
    # are the sides of real experts.
    sides = ("_stride", "width", "part_outputs", "num_outputs")
    strides = [at for at, name in enumerate(kernel.arg_names) if name.endswith(sides)]
    known = [param.num for param in kernel.params
             if not (param.do_not_specialize or param.do_not_specialize_on_alignment)]  # fmt: skip
    aligned = {(at,): [["tt.divisibility", 16]] for at in [*pointers, *strides] if at in known}
    constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return built.metadata.shared, assembly.read(built.asm["cubin"])


def main() -> int:
    """Build this part."""
    capability, part, parts = map(int, sys.argv[1:])
    for name, (kernel, types, constants, options) in itertools.islice(builds(capability), part, None, parts):
        shared, found = build(kernel, types, constants, options, capability)
        programs = programs_per_processor(capability, found, shared, options["num_warps"])
        scores = constants["ROWS"] * constants["TILE"] if kernel is triton_attention.attend_kernel else 0
        loops = [round(1000 * loop.total() * options["num_warps"] / scores) for loop in found.loops if scores]
        line = Line(name, shared, found.registers, found.stack, programs, loops, found.waits, found.early)
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
