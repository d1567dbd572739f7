"""The kernels for CUDA against their references, and an engine on them against `generate`, in shapes of the ugly kind.

On the GPU there is, or under Triton's interpreter if TRITON_INTERPRET is 1.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from triton.runtime.errors import OutOfResources

from engine.attention import long_prompts as long_prompts_module
from engine.attention import triton as triton_module
from engine.attention.choice import Problem, Workload, measure
from engine.attention.long_prompts import LongPrompt, LongPrompts
from engine.attention.reference import ReferenceAttention
from engine.attention.triton import TritonAttention
from engine.device.forward_batch import ForwardBatch, Mixture
from engine.device.kv_cache import LayerCache
from engine.kernels import reference, triton_fp8, triton_layer, triton_linear, triton_pieces, triton_rounded
from engine.kernels.launch_shapes import candidates, launch_key, use_shape
from engine.kernels.reference import Rounded
from engine.kernels.triton_attention import layout_for, paged_attention
from engine.kernels.triton_pieces import Pieces, cut
from engine.messages import AddRequest
from engine.models import cuda_layer
from engine.models.fp8 import Fp8Linear
from engine.sampling_params import SamplingParams
from engine.sizing import steps
from engine.weights.random_tokenizer import write_tokenizer
from tests.engine.kernels.devices import DEVICE, DTYPES, HAS_FP8, TOLERANCE, there
from tests.engine.kernels.expert_cases import expert_cases
from tests.engine.kernels.piece_cases import piece_cases
from tests.engine.sampling.sampler_cases import sampler_cases
from tests.engine.test_oracle import generate, make_engine, run
from tests.engine.test_oracle_images import finish
from tests.gpu import fp8_checks
from tests.soaking import SOAK
from tests.tiny_models import FAMILIES, VISION_FAMILIES, VOCAB_SIZE, build_tiny_model
from tests.vision_models import Eyes, build_seeing_model

FUSED = frozenset(FAMILIES | VISION_FAMILIES) - {"deepseek_v2", "deepseek_v3"}
"""Families whose layers are replaced whole."""
FIRST_OF_A_KIND = frozenset({"gemma2", "gemma3", "gemma3_vision", "mllama"})
"""Those of whose two layers the one whose launches are counted is the first of its kind: it cuts the keys, for all."""
OF_WINDOWS = frozenset({"mistral", "phi3"})
"""Those of which no layer sees more than a few keys."""
ROUTED = frozenset({"deepseek_v3"})
"""Those whose experts are chosen by our kernel."""

OF_EACH_KIND = ("llama", "phi3", "gemma3", "deepseek_v3", "mllama")
"""The interpreter takes 40 s for a family, and others come to our kernels in no other ways: `make soak` plays them."""


def cache_there(cache: LayerCache) -> LayerCache:
    """The cache on the device."""
    k, v = there(cache.k, cache.v)
    return LayerCache.of_latents(k, v.shape[2]) if cache.is_latent else LayerCache(k, v)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Assert that two results are the same but for rounding. The second is computed on the CPU."""
    ours = ours.cpu()
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, (ours.shape, theirs.shape)
    assert torch.isfinite(ours).all()
    tolerance = TOLERANCE[ours.dtype]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def attention(
    rows: list[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 64,
    v_dim: int | None = None,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    softcap: float | None = None,
    window: int | None = None,
    splits: int = 1,
    empty: bool = False,
    kv_dtype: torch.dtype | None = None,
    decodes: int | None = None,
    whole: bool = False,
    latent: bool = False,
) -> None:
    """Rows are (queries, context) of sequences whose blocks lie in disorder, amid blocks full of NaN.

    With `decodes` so many of the first rows decode, and the launches are those of a recorded step; with `whole` they
    are those that the backend chooses. If `latent`, values are the first numbers of keys.
    """
    torch.manual_seed(len(rows) + dim + heads)
    v_dim = v_dim or dim
    counts = [-(-context // block_size) for _, context in rows]
    blocks = torch.randperm(sum(counts) + 3) + 1
    slots = (int(blocks.max()) + 2) * block_size
    kept = kv_dtype or dtype
    kept_keys = torch.full((kv_heads, slots, dim), torch.nan, dtype=kept)
    cache = LayerCache(kept_keys, torch.full((kv_heads, slots, v_dim), torch.nan, dtype=kept))
    if latent:
        cache = LayerCache.of_latents(kept_keys, v_dim)
    tables = torch.zeros(len(rows), max(counts), dtype=torch.int32)
    taken, mapping = 0, []
    for number, ((queries, context), count) in enumerate(zip(rows, counts, strict=True)):
        own = blocks[taken : taken + count]
        taken += count
        tables[number, :count] = own
        positions = torch.arange(context)
        filled = own[positions // block_size] * block_size + positions % block_size
        cache.k[:, filled] = torch.randn(kv_heads, context, dim).to(kept)
        if not latent:
            cache.v[:, filled] = torch.randn(kv_heads, context, v_dim).to(kept)
        mapping.append(filled[context - queries :])
    num_tokens = sum(queries for queries, _ in rows)
    slot_mapping = torch.cat(mapping)
    # As transformers has it: tokens before heads in memory, heads before tokens in shape.
    q = torch.randn(num_tokens, heads, dim).to(dtype).transpose(0, 1)
    batch = ForwardBatch(
        input_ids=torch.zeros(num_tokens, dtype=torch.int64), positions=torch.zeros(num_tokens, dtype=torch.int64),
        slot_mapping=slot_mapping, block_tables=tables, query_starts=torch.zeros(0, dtype=torch.int32),
        seqlens_k=torch.tensor([context for _, context in rows], dtype=torch.int32),
        logits_index=torch.zeros(0, dtype=torch.int64), query_lens=[queries for queries, _ in rows],
        context_lens=[context for _, context in rows], num_decodes=0,
    )  # fmt: skip
    oracle = ReferenceAttention(block_size)
    oracle.plan(batch)
    k, v = cache.k[:, slot_mapping].to(dtype), cache.v[:, slot_mapping].to(dtype)
    wanted = oracle.run(q, k, v, cache, scaling=dim**-0.5, softcap=softcap, window=window)
    lens, query_lens = batch.seqlens_k, torch.tensor([queries for queries, _ in rows])
    if empty:
        lens, query_lens = torch.cat([lens, lens[:1] * 0]), torch.cat([query_lens, query_lens[:1] * 0])
        tables = torch.cat([tables, tables[:1] * 0])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), query_lens.cumsum(0)]).to(torch.int32)
    if decodes is not None:
        mixture = Mixture(*there(torch.where(torch.arange(len(rows)) < decodes, lens, 0), starts.clamp(min=decodes)))
        q, tables, lens = there(q, tables, lens)
        backend = TritonAttention(block_size, DEVICE)
        backend.plan(
            replace(
                batch, block_tables=tables, seqlens_k=lens, query_lens=[num_tokens] * len(rows),
                context_lens=[1000] * len(rows), mixture=mixture,
            )
        )  # fmt: skip
        cache = cache_there(cache)
        close(backend._attend(q, cache, dim**-0.5, softcap, window), wanted)
        return
    if whole:
        backend = TritonAttention(block_size, DEVICE)
        del backend.long_prompts.longest
        first = next((number for number, count in enumerate(query_lens) if count > 1), len(rows))
        q, tables, lens, starts = there(q, tables, lens, starts)
        backend.plan(replace(batch, block_tables=tables, seqlens_k=lens, query_starts=starts, num_decodes=first))
        cache = cache_there(cache)
        close(backend._attend(q, cache, dim**-0.5, softcap, window), wanted)
        return
    q, tables, lens, starts = there(q, tables, lens, starts)
    cache = cache_there(cache)
    layout = layout_for(
        q, cache, num_seqs=len(lens), max_query_len=int(query_lens.max()), num_processors=splits * kv_heads
    )
    layout = replace(layout, num_pieces=splits * len(rows) if splits > 1 else 0, smallest=layout.shape.tile)
    pieces = cut(lens, starts, layout, window=window)
    ours = paged_attention(
        q, cache, tables, pieces, block_size=block_size, scaling=dim**-0.5, softcap=softcap, window=window
    )
    longest = min(max(context for _, context in rows), window or 2**31)
    assert splits == 1 or longest < 2 * layout.shape.tile or int((pieces.joins[:, 3] > 1).sum()), "nothing was cut"
    close(ours, wanted)


def long_prompts() -> None:
    """Those that are served apart, amid others, padded over blocks full of NaN."""
    rows = [(1, 5), (1, 40), (3, 9), (40, 40), (5, 5), (32, 32), (33, 33), (2, 7)]

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)

    served: list[int] = []
    run = LongPrompts.run

    def seen(self: LongPrompts, prompt: LongPrompt, *rest: Any) -> None:
        served.append(prompt.padded_len)
        run(self, prompt, *rest)

    small = {"SHORTEST": 30, "FINE": 32, "COARSE": 32} | ({} if DEVICE.type == "cuda" else {"attend": plain})
    with contextlib.ExitStack() as stack:
        for name, value in small.items():
            stack.enter_context(mock.patch.object(long_prompts_module, name, value))
        stack.enter_context(mock.patch.object(triton_module, "SHORTEST", 30))
        stack.enter_context(mock.patch.object(LongPrompts, "run", seen))
        stack.enter_context(mock.patch.object(LongPrompts, "longest", 512, create=True))
        attention(rows, dtype=DTYPES[-1], whole=True)
        attention([(40, 40)], dtype=DTYPES[-1], whole=True, window=9)
        attention([(40, 40)], dtype=DTYPES[-1], whole=True, softcap=5.0)
    assert served == [64, 32, 64]


def launch_shapes(dim: int, latent: int | None = None) -> None:
    """All launch shapes that may be chosen on some GPU give the same results; one that does not fit is never chosen."""
    heads, kv_heads, group = (4, 2, 2) if latent is None else (40, 1, 40)
    for is_prompt, rows in ((False, [(1, 70), (1, 3)]), (True, [(40, 70), (20, 20)])):
        kv_bytes = DTYPES[-1].itemsize
        key = launch_key(dim, group, is_prompt=is_prompt, is_latent=latent is not None, kv_bytes=kv_bytes)
        try:
            for number, shape in enumerate(candidates(key)):
                use_shape(key, shape)
                with contextlib.suppress(*([OutOfResources] if number else [])):
                    attention(rows, heads=heads, kv_heads=kv_heads, dim=dim, v_dim=latent, dtype=DTYPES[-1],
                              latent=latent is not None)  # fmt: skip
        finally:
            use_shape(key, None)


def choice(problem: Problem) -> None:
    """Every candidate for `attention: auto` runs, and one is chosen."""
    names = []

    def timer(name: str, work: Callable[[], object], *, capturable: bool) -> float:
        assert torch.isfinite(torch.as_tensor(work())).all()
        names.append(name)
        return 1.0

    assert measure(problem, DEVICE, timer, Workload(decodes=2, context=40, prompt=40)).attention == "triton"
    assert {" ".join(name.split()[:2]) for name in names} == {
        f"{name} {what}" for name in ("triton", "sdpa") for what in ("decode", "prompt")
    }


def norm(rows: int, dim: int, dtype: torch.dtype, *, add: bool, plus_one: bool, norm_x: bool = False) -> None:
    """Both the result and the residual stream."""
    torch.manual_seed(dim)
    x, weight = torch.randn(rows, dim).to(dtype), torch.randn(dim).to(dtype)
    theirs = torch.randn(rows, dim).to(dtype) if add else None
    ours = theirs.clone().to(DEVICE) if theirs is not None else None
    x_weight = torch.randn(dim).to(dtype) if norm_x else None
    x_there, weight_there = there(x, weight)
    x_weight_there = None if x_weight is None else x_weight.to(DEVICE)
    normed = triton_layer.add_rms_norm(x_there, ours, weight_there, 1e-5, plus_one=plus_one, x_weight=x_weight_there)
    close(normed, reference.add_rms_norm(x, theirs, weight, 1e-5, plus_one=plus_one, x_weight=x_weight))
    if ours is not None and theirs is not None:
        close(ours, theirs)


def activation(rows: int, dim: int, dtype: torch.dtype, name: str) -> None:
    """Far out values included."""
    torch.manual_seed(dim)
    gate_up = (torch.randn(rows, 2 * dim) * 4).to(dtype)
    gate_up[0, :2] = torch.tensor([60.0, -60.0])
    close(triton_layer.activate_mul(*there(gate_up), name), reference.activate_mul(gate_up, name))


def products(rows: int, outputs: int, width: int, dtype: torch.dtype, *, bias: bool) -> None:
    """Sizes that are no multiple of a tile; in every launch shape."""
    torch.manual_seed(outputs + rows)
    x, weight = (torch.randn(rows, width) / width**0.5).to(dtype), torch.randn(outputs, width).to(dtype)
    added = torch.randn(outputs).to(dtype) if bias else None
    wanted = torch.nn.functional.linear(x.float(), weight.float(), None if added is None else added.float()).to(dtype)
    for shape in triton_linear.shapes_for(rows):
        close(
            triton_linear.small_product(*there(x, weight), None if added is None else added.to(DEVICE), shape), wanted
        )


def quantized(rows: int, dim: int, dtype: torch.dtype) -> None:
    """Rows of every size, of zeros, with one number far out, with numbers too small for FP8, and with a NaN."""
    torch.manual_seed(dim)
    x = (torch.randn(rows, dim) * torch.logspace(-3, 3, rows)[:, None]).to(dtype)
    x[0, 0] = 1000.0
    if rows > 3:
        x[1] = 0.0
        x[2] *= torch.logspace(-6, 0, dim)
        x[3, -1] = torch.nan
    same_rounding(triton_fp8.quantize_rows(*there(x)), reference.Rounded(*reference.quantize_rows(x), dtype))


def same_rounding(ours: Rounded, wanted: Rounded) -> None:
    """Assert that two hold the same to the bit, and a NaN where the other has one."""
    numbers, scales = wanted.numbers.cpu().view(torch.uint8), wanted.scales.cpu()
    with_nan = (wanted.numbers.cpu().float() * scales).isnan().any(1)
    assert ours.dtype == wanted.dtype
    assert bool((ours.numbers.cpu().float() * ours.scales.cpu()).isnan().any(1).eq(with_nan).all())
    assert torch.equal(ours.scales.cpu()[~with_nan], scales[~with_nan])
    assert torch.equal(ours.numbers.cpu().view(torch.uint8)[~with_nan], numbers[~with_nan])


def norm_to_fp8(rows: int, dim: int, dtype: torch.dtype, *, add: bool, norm_x: bool) -> None:
    """What the norm and the rounding give one after another, to the bit; and the residual stream."""
    torch.manual_seed(dim)
    x, weight = there(torch.randn(rows, dim).to(dtype), torch.randn(dim).to(dtype))
    if rows > 1:
        x[1, 0] = torch.nan
    residuals = [there(torch.randn(rows, dim, generator=torch.Generator().manual_seed(1)).to(dtype))[0] for _ in "12"]
    arguments = {"plus_one": norm_x, "x_weight": weight if norm_x else None}
    together, apart = (triton_rounded.add_rms_norm_rounded, triton_layer.add_rms_norm)
    ours = together(x, residuals[0] if add else None, weight, 1e-5, **arguments)
    wanted = apart(x, residuals[1] if add else None, weight, 1e-5, **arguments)
    same_rounding(ours, triton_fp8.quantize_rows(wanted))
    assert torch.equal(residuals[0].isnan(), residuals[1].isnan())
    assert torch.equal(residuals[0].nan_to_num(), residuals[1].nan_to_num())


def activation_to_fp8(rows: int, dim: int, dtype: torch.dtype, name: str) -> None:
    """What the activation and the rounding give one after another, to the bit; too wide for one launch as well."""
    torch.manual_seed(dim)
    (gate_up,) = there((torch.randn(rows, 2 * dim) * 4).to(dtype))
    gate_up[0, :2] = torch.tensor([60.0, -60.0])
    wanted = triton_fp8.quantize_rows(triton_layer.activate_mul(gate_up, name))
    same_rounding(triton_rounded.activate_mul_rounded(gate_up, name), wanted)
    with mock.patch.object(triton_rounded, "WIDEST", dim - 1):
        same_rounding(triton_rounded.activate_mul_rounded(gate_up, name), wanted)
    assert triton_rounded.rounds_alike(dim, dim, name, dtype, DEVICE)
    with mock.patch.object(triton_rounded, "activate_mul_rounded", lambda x, _: triton_fp8.quantize_rows(x[:, :dim])):
        assert not triton_rounded.rounds_alike(dim, dim, name, dtype, DEVICE), "what is wrong is seen"


def fp8_products(rows: int, outputs: int, width: int, dtype: torch.dtype, *, bias: bool) -> None:
    """Few rows with weights in FP8, in sizes that are no multiple of a tile; in every launch shape."""
    torch.manual_seed(outputs + rows)
    linear = Fp8Linear.quantized(torch.randn(outputs, width), torch.randn(outputs).to(dtype) if bias else None)
    x = (torch.randn(rows, width) / width**0.5).to(dtype)
    added = None if linear.bias is None else linear.bias.to(DEVICE)
    for shape in triton_fp8.FEW_ROWS_SHAPES:
        with contextlib.suppress(OutOfResources):  # such a shape is not chosen there
            rounded = triton_fp8.quantize_rows(*there(x))
            ours = triton_fp8.few_rows_product(rounded, *there(linear.weight, linear.scale), added, shape)
            close(ours, linear.plain_product(x))


def rotary(
    tokens: int,
    heads: int,
    kv_heads: int,
    dim: int,
    turned: int,
    dtype: torch.dtype,
    norm: str,
    kv_dtype: torch.dtype | None = None,
) -> None:
    """The queries, and the whole cache. `norm` is none, plain or plus_one. Keys of a cache in FP8 lack an offset."""
    torch.manual_seed(dim + tokens)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    if kv_dtype is not None:
        qkv[:, heads * dim] = torch.tensor([-5000.0, 5000.0]).repeat(tokens)[:tokens]
        qkv[:, -1] = torch.tensor([700.0, torch.nan]).repeat(tokens)[:tokens]
    angles = torch.rand(tokens, turned // 2) * 6
    cos, sin = (torch.cat([part, part], dim=-1).to(dtype) for part in (angles.cos(), angles.sin()))
    slots = torch.randperm(64)[:tokens]
    caches = [torch.zeros(kv_heads, 64, dim, dtype=kv_dtype or dtype) for _ in range(2)]
    weights = torch.randn(2, dim).to(dtype)
    norms, norms_there = (
        None if norm == "none" else reference.HeadNorms(q, k, 1e-6, norm == "plus_one")
        for q, k in (weights, weights.to(DEVICE))
    )
    caches_there = there(*caches)
    offset = None if kv_dtype is None else torch.randn(kv_heads, dim) * 20
    q = triton_layer.rotate_write(
        *there(qkv, cos, sin, slots), *caches_there, heads=heads, norms=norms_there,
        key_offset=None if offset is None else offset.to(DEVICE),
    )  # fmt: skip
    wanted_q = reference.rotate_write(
        qkv, cos, sin, slots, caches[0], caches[1], heads=heads, norms=norms, key_offset=offset
    )
    close(q, wanted_q)
    for written, wanted in zip(caches_there, caches, strict=True):
        if kv_dtype is None:
            close(written, wanted)
        else:  # one step of e4m3, where the sums that are rounded differ in their last bit
            torch.testing.assert_close(written.cpu().float(), wanted.float(), rtol=0.13, atol=0.002, equal_nan=True)
            assert not bool((written.cpu().float().abs() > reference.E4M3_MAX).any())


@contextlib.contextmanager
def noting_cuts() -> Iterator[list[Pieces]]:
    """Inside, launches have pieces of a tile or more, and are noted as they are dealt out."""
    noted: list[Pieces] = []

    def noting(*arguments: Any, **options: Any) -> Pieces:
        noted.append(cut(*arguments, **options))
        return noted[-1]

    with (
        mock.patch.object(triton_pieces, "SMALLEST_PIECE", 1),
        mock.patch.object(triton_pieces, "SMALLEST_PROMPT_PIECE", 1),
        mock.patch.object(triton_module, "cut", noting),
    ):
        yield noted


def requests_that_meet() -> tuple[dict[int, AddRequest], dict[int, int]]:
    """Prompts that decode while longer ones are read, then a few tokens behind many that are cached; their arrivals."""
    prompts = [[3 + (7 * at + number) % 200 for at in range(length)] for number, length in enumerate((1, 5, 27, 70))]
    prompts.append([*prompts[-1], 9, 8, 7])
    params = SamplingParams(max_tokens=3, temperature=0)
    requests = {number: AddRequest(number, prompt, params) for number, prompt in enumerate(prompts)}
    return requests, {0: 0, 1: 0, 2: 1, 3: 2, 4: 6}


def engine(family: str, *, fusion: bool, graphs: bool = True) -> None:
    """Requests of several lengths in one engine say what `generate` says. With `graphs` most steps are padded."""
    small = mock.patch.object(steps, "TOKEN_SIZES", (8, 32))  # as the interpreter is slow
    with tempfile.TemporaryDirectory() as work, small, noting_cuts() as noted:
        directory = build_tiny_model(family, Path(work) / "model", two_layers=True)
        ours = make_engine(directory, attention="triton", device=DEVICE.type, fusion=fusion, graphs=graphs,
                           max_batched_tokens=64, max_num_seqs=4)  # fmt: skip
        layers = {type(module).__name__ for module in ours._runner.model.modules()}  # type: ignore[attr-defined]
        assert ("CudaDecoderLayer" in layers) == (fusion and family in FUSED), family
        assert (layers >= {"GroupedExperts", "FusedRouter"}) == (fusion and family in ROUTED), layers
        launches = ours._runner.launches_per_layer  # type: ignore[attr-defined]
        assert not fusion or family not in FUSED or launches == 10 + (family in FIRST_OF_A_KIND), launches
        requests, arrivals = requests_that_meet()
        outputs = run(ours, requests, arrivals)
        if graphs and DEVICE.type == "cuda":
            assert ours._runner.padded.decoding.num_recorded and ours._runner.padded.mixed.num_recorded  # type: ignore[attr-defined]
        cuts = {pieces.layout.one_query for pieces in noted if bool((pieces.joins[:, 3] > 0).any())}
        # Of what is recorded only the newest can be looked at.
        assert DEVICE.type == "cuda" or family in OF_WINDOWS or cuts == {True, False}, cuts
        for number, request in requests.items():
            wanted = generate(directory, request.prompt_token_ids, 3)
            assert outputs[number] == wanted[: len(outputs[number])] and outputs[number], (number, outputs, wanted)


def engine_in_fp8() -> None:
    """Products of few rows are ours, in decoding steps and short prompts, and say what plain torch says."""
    with tempfile.TemporaryDirectory() as work:
        directory = build_tiny_model("llama", Path(work) / "model", two_layers=True)
        requests = {
            number: AddRequest(number, [3 + (7 * at + number) % 200 for at in range(length)],
                               SamplingParams(max_tokens=4, temperature=0))
            for number, length in enumerate((1, 5, 27))
        }  # fmt: skip
        said = []
        for attention_name in ("triton", "reference"):
            ours = make_engine(directory, attention=attention_name, quantization="fp8")
            few = [m.few_rows for m in ours._runner.model.modules() if isinstance(m, Fp8Linear)]  # type: ignore[attr-defined]
            assert len(few) == 4 and all(few) == (attention_name == "triton"), few
            together = (cuda_layer.add_rms_norm_rounded, cuda_layer.activate_mul_rounded)
            spies = [mock.patch.object(cuda_layer, made.__name__, wraps=made) for made in together]
            with spies[0] as of_norms, spies[1] as of_activations:
                said.append(run(ours, requests, {0: 0, 1: 0, 2: 1}))
            assert of_norms.call_count == 2 * of_activations.call_count, "both norms of the one layer in FP8"
            assert bool(of_norms.call_count) == (attention_name == "triton")
        assert said[0] == said[1], said


def seeing(family: str) -> None:
    """What images do to a step goes on around layers of ours: beside them, between them, in both directions."""
    text = [7, 19, 23, 5, 101, 200]
    conversations = [[text, (56, 56), text[:3]], [text, (28, 56, 1), 9, (56, 28, 2), text], [text]]
    with tempfile.TemporaryDirectory() as work:
        eyes = Eyes(family, build_seeing_model(family, Path(work) / "model"))
        ours = make_engine(eyes.directory, attention="triton", device=DEVICE.type, max_batched_tokens=128)
        layers = {type(module).__name__ for module in ours._runner.model.modules()}  # type: ignore[attr-defined]
        assert "CudaDecoderLayer" in layers, family
        for number, parts in enumerate(conversations):
            eyes.add(ours, number, parts, SamplingParams(max_tokens=3, temperature=0, ignore_eos=True))
        outputs = finish(ours)
        for number, parts in enumerate(conversations):
            assert outputs[number, 0] == eyes.generate(parts, 3, eos_token_id=-1), (family, parts)


def engine_of_large_keys(*, fusion: bool) -> None:
    """An FP8 cache holds keys less what they have in common, whoever writes them."""
    with tempfile.TemporaryDirectory() as work:
        directory = build_tiny_model("qwen2", Path(work) / "model", two_layers=True)
        fp8_checks.give_large_keys(directory)
        write_tokenizer(directory, VOCAB_SIZE, None)
        ours = make_engine(directory, attention="triton", device=DEVICE.type, fusion=fusion, kv_dtype="fp8")
        layers = {type(module).__name__ for module in ours._runner.model.modules()}  # type: ignore[attr-defined]
        assert ("CudaDecoderLayer" in layers) == fusion, "the changed layers were undone"
        run(ours, {0: AddRequest(0, [3, 4, 5, 6, 7], SamplingParams(max_tokens=2, temperature=0))}, {0: 0})
        for cache in ours._runner.caches.values():  # type: ignore[attr-defined]
            assert float(cache.key_offset.abs().max()) > 0.9 * fp8_checks.LARGE_KEYS
            assert 0 < float(cache.k.float().abs().max()) < 0.3 * fp8_checks.LARGE_KEYS


def latent_cases() -> Iterator[tuple[str, Callable[..., None], tuple[Any, ...], dict[str, Any]]]:
    """Attention of one KV head whose values are in its keys; the first are the widths of DeepSeek-R1."""
    rows = [(1, 1), (1, 16), (1, 70), (5, 5), (3, 40), (20, 33)]
    for heads, dim, v_dim in ((16, 576, 512), (128, 576, 512), (40, 288, 256), (4, 24, 16), (3, 52, 44)):
        options = {"heads": heads, "kv_heads": 1, "dim": dim, "v_dim": v_dim, "latent": True}
        some = rows if heads < 128 else [(1, 40), (2, 9)]
        yield f"latents: {heads} heads of {v_dim} and {dim - v_dim}", attention, (some,), options
        parts = options | {"splits": 4, "empty": True}
        yield f"latents: {heads} heads of {v_dim} and {dim - v_dim}, parts", attention, ([(1, 90), (1, 3)],), parts
    small = {"heads": 20, "kv_heads": 1, "dim": 40, "v_dim": 32, "latent": True}
    yield "latents: as the backend launches them", attention, (rows,), small | {"whole": True}
    for decodes in (0, 3):
        recorded = [*[(1, 5 + at % 40) for at in range(decodes)], (30, 50), (5, 5), (1, 30)]
        yield f"latents: {decodes} of a recorded step", attention, (recorded,), small | {"decodes": decodes}
    yield "latents: in 16 bits", attention, (rows,), small | {"dtype": DTYPES[-1]}
    if HAS_FP8:
        yield "latents: FP8 cache", attention, (rows,), small | {"kv_dtype": torch.float8_e4m3fn}
    yield "latents: every launch shape", launch_shapes, (40,), {"latent": 32}
    yield "latents: auto", choice, (Problem(4, 1, 40, 32, torch.float32, torch.float32, 16, is_latent=True),), {}


def cases() -> Iterator[tuple[str, Callable[..., None], tuple[Any, ...], dict[str, Any]]]:
    """Name, check, arguments."""
    at_length = SOAK or DEVICE.type == "cuda"
    for family in (*FAMILIES, *VISION_FAMILIES) if at_length else OF_EACH_KIND:
        yield f"engine: {family}", engine, (family,), {"fusion": True}
    for family in ("mllama", "qwen3_vl", "gemma3_vision") if at_length else ("gemma3_vision",):
        yield f"engine: {family}, with images", seeing, (family,), {}
    if DEVICE.type == "cpu":
        yield "engine: llama in FP8", engine_in_fp8, (), {}
    yield "engine: llama, not padded", engine, ("llama",), {"fusion": True, "graphs": False}
    yield "engine: llama, not fused", engine, ("llama",), {"fusion": False, "graphs": False}
    for fusion in (True, False) if HAS_FP8 else ():
        yield f"engine: FP8 cache, large keys, fused {fusion}", engine_of_large_keys, (), {"fusion": fusion}
    mixed = [(1, 1), (1, 16), (1, 17), (5, 5), (3, 40), (20, 33)]
    yield "attention: one token of one", attention, ([(1, 1)],), {}
    yield "attention: prompts and decoding rows", attention, (mixed,), {}
    for decodes in (0, 3, 70):
        for window in (None, 9):
            rows = [*[(1, 5 + at % 40) for at in range(decodes)], (70, 90), (5, 5), (1, 30)]
            yield f"attention: {decodes} of a recorded step, window {window}", attention, (rows,), {
                "decodes": decodes, "window": window
            }  # fmt: skip
    yield "attention: recorded, all decode", attention, ([(1, 5 + at % 40) for at in range(40)],), {"decodes": 40}
    yield "attention: long prompts", long_prompts, (), {}
    yield "attention: a row without queries", attention, (mixed,), {"empty": True}
    yield "attention: edges of blocks of 32", attention, ([(1, 31), (1, 32), (1, 33), (32, 64)],), {"block_size": 32}
    for dtype in DTYPES:
        yield f"attention: {dtype}", attention, (mixed,), {"dtype": dtype}
        if HAS_FP8:
            options = {"dtype": dtype, "kv_dtype": torch.float8_e4m3fn}
            yield f"attention: {dtype}, FP8 cache", attention, (mixed,), options
            yield f"attention: {dtype}, FP8 cache, parts", attention, ([(1, 70), (1, 3)],), options | {"splits": 4}
    yield "attention: long prompt", attention, ([(150, 150), (70, 200)],), {"heads": 2, "kv_heads": 1}
    yield "attention: 8,192 keys", attention, ([(1, 8192)],), {"splits": 8, "heads": 2, "kv_heads": 1}
    for heads, kv_heads in ((1, 1), (2, 1), (3, 1), (7, 1), (12, 1), (12, 3), (16, 1), (32, 8)):
        options = {"heads": heads, "kv_heads": kv_heads}
        yield f"attention: {heads} heads on {kv_heads}", attention, ([(1, 20), (6, 19)],), options
    for dim in (64, 80, 96, 128, 256):
        yield f"attention: heads of {dim}", attention, ([(1, 40), (4, 30)],), {"dim": dim}
    yield "attention: values of another width", attention, ([(1, 40), (4, 30)],), {"dim": 96, "v_dim": 64}
    for window in (1, 2, 16, 31, 64, 1000):
        for splits in (1, 4):
            rows = [(1, 90), (1, 64), (1, 16), (40, 80)]
            options = {"window": window, "splits": splits}
            yield f"attention: window of {window}, {splits} parts", attention, (rows,), options
    yield "attention: softcap", attention, (mixed,), {"softcap": 5.0}
    options = {"softcap": 5.0, "window": 33, "splits": 4}
    yield "attention: softcap, window, parts", attention, ([(1, 70), (1, 3)],), options
    if HAS_FP8:  # numbers in bf16 beside a cache in FP8 are computed with in fp16, which the interpreter can do
        options = {"dtype": torch.bfloat16, "kv_dtype": torch.float8_e4m3fn}
        yield "attention: bf16, FP8 cache", attention, (mixed,), options
        yield "latents: bf16, FP8 cache", attention, (mixed,), options | {
            "heads": 8, "kv_heads": 1, "dim": 48, "v_dim": 32, "latent": True
        }  # fmt: skip
    for dim in (64, 128, 256):
        yield f"attention: every launch shape, heads of {dim}", launch_shapes, (dim,), {}
    yield "attention: auto", choice, (Problem(4, 2, 64, 64, torch.float32, torch.float32, 16),), {}
    yield from latent_cases()
    for splits in (2, 16):
        yield f"attention: {splits} parts", attention, ([(1, 1), (1, 100), (1, 17)],), {"splits": splits, "empty": True}
        rows = [(1, 300), (3, 170), (40, 200), (1, 17)]
        yield f"attention: a few queries in {splits} parts", attention, (rows,), {"splits": splits}
    for dtype in DTYPES:
        for rows, dim in ((1, 64), (3, 576), (2, 5120)):
            for add, plus_one in ((False, False), (True, False), (True, True)):
                options = {"add": add, "plus_one": plus_one, "norm_x": add and dim != 64}
                yield f"norm: {rows} of {dim}, {dtype}, {options}", norm, (rows, dim, dtype), options
        for rows in (1, 2, 7, 16):
            yield f"product: {rows} rows, {dtype}", products, (rows, 200, 576 + 8 * rows, dtype), {"bias": rows != 7}
        for name in triton_layer.ACTIVATIONS:
            for rows, dim in ((1, 1), (3, 1536), (2, 1024)):
                yield f"{name}: {rows} of {dim}, {dtype}", activation, (rows, dim, dtype, name), {}
        for shape in ((1, 4, 4, 64, 64), (5, 9, 3, 64, 64), (2, 4, 1, 96, 96), (3, 2, 2, 128, 64), (2, 2, 1, 80, 32)):
            for norm_kind in ("none", "plain", "plus_one"):
                yield f"rotary: {shape}, {dtype}, norm {norm_kind}", rotary, (*shape, dtype, norm_kind), {}
            if HAS_FP8:
                options = {"kv_dtype": torch.float8_e4m3fn}
                yield f"rotary: {shape}, {dtype}, FP8 cache", rotary, (*shape, dtype, "none"), options
        for rows, outputs, width in ((1, 208, 592), (7, 48, 512), (16, 160, 1040)) if HAS_FP8 else ():
            name = f"product in FP8: {rows} rows of {width} to {outputs}, {dtype}"
            yield name, fp8_products, (rows, outputs, width, dtype), {"bias": rows == 7}
        for rows, dim in ((1, 16), (5, 576), (4, 1000), (4, 11008)) if HAS_FP8 else ():
            yield f"FP8: {rows} of {dim}, {dtype}", quantized, (rows, dim, dtype), {}
            for add, norm_x in ((False, False), (True, False), (True, True)):
                name = f"norm to FP8: {rows} of {dim}, {dtype}, added {add}, normed {norm_x}"
                yield name, norm_to_fp8, (rows, dim, dtype), {"add": add, "norm_x": norm_x}
            for activated in triton_layer.ACTIVATIONS:
                name = f"{activated} to FP8: {rows} of {dim}, {dtype}"
                yield name, activation_to_fp8, (rows, dim, dtype, activated), {}
    yield from expert_cases()
    yield from piece_cases()
    yield from sampler_cases()
