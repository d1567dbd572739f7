"""The kernels for CUDA built for an architecture, which needs no GPU.

    python -m tests.engine.kernels.built_kernels PART PARTS CAPABILITY [FILE]

Builds every PARTS-th kernel from the PART-th on, and prints a `Line` of JSON for each: attention that figures are known
of, and what is in a FILE that `real_launches` has written.
"""

import itertools
import json
import pickle
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.kernels import launches, triton_attention, triton_linear, triton_pieces
from engine.kernels.launch_shapes import LaunchShape, default_shape, launch_key
from tests.engine.kernels import assembly
from tests.engine.kernels.assembly import Assembly, programs_per_processor
from tests.engine.kernels.real_launches import Launch


class Line(NamedTuple):
    """What came of a build."""

    name: str
    kernel: str
    shared: int
    """Bytes of shared memory."""
    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread: what it puts away because registers do not suffice."""
    spills: int
    """Instructions of its loops that put away or fetch what registers do not suffice for."""
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
) -> Launch:
    """A launch of the attention kernel as `paged_attention` has it.

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
        "WHOLE": prompt and not window and (kv_bytes != 1 or wide_queries or dim <= 128 or latent is not None),
    }  # fmt: skip
    kept = {1: "*fp8e4nv", 2: "*bf16", 4: "*fp32"}[kv_bytes]
    types = {name: "*fp32" if wide_queries else "*bf16" if kv_bytes == 1 else kept for name in ("q", "out")}
    types |= {name: kept for name in ("k_cache", "v_cache")}
    types |= {name: "*i32" for name in ("tables", "pieces")}
    types |= {name: "*fp32" for name in ("part_max", "part_sum", "part_acc")}
    types |= {name: "fp32" for name in ("scale", "softcap")}
    kernel = triton_attention.attend_kernel
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    # As at a launch: memory is aligned, and strides are multiples of a head's width, but where it differs by step.
    known = [param.num for param in kernel.params
             if not (param.do_not_specialize or param.do_not_specialize_on_alignment)]  # fmt: skip
    aligned = [at for at, name in enumerate(kernel.arg_names) if signature[name][0] == "*" or name.endswith("_stride")]
    return Launch(
        kernel.fn.__module__, kernel.fn.__name__, signature,
        {(kernel.arg_names.index(name),): value for name, value in constants.items()},
        {(at,): [["tt.divisibility", 16]] for at in aligned if at in known},
        {"num_warps": shape.num_warps, "num_stages": shape.num_stages},
    )  # fmt: skip


FP8 = 89
"""The first capability whose processors turn numbers into e4m3; Triton has no conversion for older ones."""
DEPENDENT = 90
"""The first capability whose launches may be dependent."""


def known_launches() -> Iterator[tuple[str, Launch]]:
    """Attention that figures are known of, or that no recommended model has: in fp32."""
    for dim in (64, 128):
        yield f"attention of prompts, {dim}, group of 4", attention(dim, 4, prompt=True)
        yield f"attention, {dim}, group of 4", attention(dim, 4, prompt=False)
    yield "attention of prompts, FP8 cache, 128, group of 4", attention(128, 4, prompt=True, kv_bytes=1)
    yield "attention, FP8 cache, 128, group of 4", attention(128, 4, prompt=False, kv_bytes=1)
    likely = attention(128, 4, prompt=True, shape=LaunchShape(128, 64, 8, 3))
    yield "attention of prompts, 128, group of 4, 128x64/8/3", likely
    five = attention(128, 4, prompt=False, shape=LaunchShape(16, 64, 4, 5))
    yield "attention, 128, group of 4, five stages", five
    for group, prompt in itertools.product((16, 128), (True, False)):
        name = f"attention on latents, group of {group}, prompts {prompt}"
        yield name, attention(576, group, latent=512, prompt=prompt)
    for dim, prompt in itertools.product((64, 128, 256), (True, False)):
        yield f"attention in fp32, {dim}, prompts {prompt}", attention(dim, 4, prompt=prompt, kv_bytes=4)
        build = attention(dim, 4, prompt=prompt, kv_bytes=1, wide_queries=True)
        yield f"attention in fp32, FP8 cache, {dim}, prompts {prompt}", build
    for softcap in (False, True):  # of Gemma 2, and of those after it
        name = f"attention of prompts, FP8 cache, 256, softcap {softcap}"
        yield name, attention(256, 2, prompt=True, kv_bytes=1, softcap=softcap)
    yield "attention on latents in fp32", attention(576, 128, latent=512, prompt=True, kv_bytes=4)


def all_launches(capability: int, file: Path | None) -> Iterator[tuple[str, Launch]]:
    """What a GPU may be given; where it has no FP8, nothing that reads or writes it."""
    noted = [] if file is None else [Launch(*one) for one in pickle.loads(file.read_bytes())]
    for name, one in (*known_launches(), *((_name(launch), launch) for launch in noted)):
        if capability >= FP8 or "*fp8e4nv" not in one.signature.values():
            yield name, one


def _name(launch: Launch) -> str:
    """Its kernel, what that is built for, and the kinds of its tensors."""
    names = list(launch.signature)
    constants = ", ".join(f"{names[at[0]]} {value}" for at, value in launch.constants.items() if value is not None)
    kinds = " ".join(dict.fromkeys(kind for kind in launch.signature.values() if kind.startswith("*")))
    return f"{launch.name} of {kinds}: {constants}, {launch.options.get('num_warps')} warps"


def build(launch: Launch, capability: int) -> tuple[int, Assembly]:
    """Compile one, for dependent launches if it can: its bytes of shared memory, and its assembly."""
    kernel = getattr(import_module(launch.module), launch.name)
    constants, options = dict(launch.constants), dict(launch.options)
    if kernel.arg_names[-1] == launches.DEPENDENT:
        constants[(len(kernel.arg_names) - 1,)] = capability >= DEPENDENT
    if kernel is triton_linear.few_rows_kernel:
        options["num_stages"] = triton_linear.stages_for(divmod(capability, 10))
    source = ASTSource(kernel, launch.signature, constants, launch.attributes)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return built.metadata.shared, assembly.read(built.asm["cubin"])


def main() -> int:
    """Build this part."""
    part, parts, capability = map(int, sys.argv[1:4])
    file = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    for name, launch in list(all_launches(capability, file))[part::parts]:
        shared, found = build(launch, capability)
        programs = programs_per_processor(capability, found, shared, launch.options["num_warps"])
        names = list(launch.signature)
        sizes = {names[at[0]]: value for at, value in launch.constants.items()}
        scores = sizes["ROWS"] * sizes["TILE"] if launch.name == "attend_kernel" else 0
        loops = [round(1000 * loop.total() * launch.options["num_warps"] / scores) for loop in found.loops if scores]
        spills = sum(loop[name] for loop in found.loops for name in ("LDL", "STL"))
        line = Line(
            name, launch.name, shared, found.registers, found.stack, spills, programs, loops, found.waits, found.early
        )
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
