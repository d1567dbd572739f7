"""`headrace models --gpu NAME`: what of models.yaml fits on a GPU or several, with how much context, how fast at most.

It is computed from configurations alone: those that are here, else the shapes that come with Headrace.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import Any, TextIO

from engine.config import KvDtype, Quantization
from engine.sizing.fit import Fit, fit
from engine.sizing.formulas import shape_of
from engine.sizing.shape import FP8_BLOCK
from engine.sizing.speed import decode_limit
from engine.sizing.split import most_ranks
from engine.sizing.steps import step_limits
from engine.weights.checkpoint import read_config
from engine.weights.random_model import shipped_config
from engine.weights.sources import describe
from server.commands.table import readable_size, write_table
from server.config.settings import ModelsFile, ModelSpec
from server.fleet.gpus import BANDWIDTH_SHARE, FLOPS_SHARE, Gpu, Gpus


@dataclass(frozen=True, slots=True)
class Form:
    """How weights and KV cache are kept."""

    title: str
    quantization: Quantization = "none"
    kv_dtype: KvDtype = "auto"
    fp8_files: bool = False
    """Only where the files have the weights in FP8: read in full they are too large."""


PLAIN = Form("16 bits")
FP8 = Form("fp8", "fp8")
FP8_KV = Form("fp8, kv fp8", "fp8", "fp8")
LIMIT_CONTEXT = 2048
"""Tokens behind each sequence, in limits."""
MANY = 64
NOTE = (
    "Computed for an empty machine, not tried. 'fp8 files' are checkpoints in FP8, where weights of 16 bits are too "
    "large to be read first. Of models that see the tower and room for images are counted, limits are of steps "
    "without images. Not known are kinds that are not counted, and what is neither here nor a shape that ships."
)
RANKS_NOTE = (
    " GPUS: as many of them as divide the model, which is what to write as tensor_parallel. Weights and steps are "
    "those of each; all hold their parts of the same tokens."
)
LIMIT_NOTE = (
    f"Limits are what bytes and operations allow at so many sequences, {LIMIT_CONTEXT:,} tokens behind each, by "
    f"{BANDWIDTH_SHARE:.0%} of the bandwidth and {FLOPS_SHARE:.0%} of the operations that NVIDIA states. Launches and "
    "the latency of sums among GPUs are left out, which weigh the more the fewer sequences there are. Nothing of it "
    "was measured."
)
NOTE_WIDTH = 110
FP8_METHODS = frozenset({"fp8", "fbgemm_fp8", "compressed-tensors"})
"""`quant_method` of checkpoints that may be in FP8."""


@dataclass(frozen=True, slots=True)
class Found:
    """A model in one form on some GPUs."""

    form: Form
    ranks: int
    """GPUs that share it."""
    fit: Fit
    """On each of them."""
    limits: Mapping[int, float]
    """Most tokens a second, by sequences at once: 1, `MANY` and as many as fit, as far as they fit."""

    @property
    def most(self) -> int:
        """Sequences that are in one step at most, 0 if none."""
        return max(self.limits, default=0)


def print_fits(file: ModelsFile, gpus: Gpus, out: TextIO) -> None:
    """Write the tables of a file's models on some GPUs: what fits, and what it does at most."""
    rows: list[tuple[str, ...]] = [("MODEL", "FORM", "GPUS", "WEIGHTS", "STEPS", "KV TOKENS", "CONTEXT", "AT ONCE")]
    limits: list[tuple[str, ...]] = [("MODEL", "FORM", "LIMIT, TOK/S: AT 1", f"AT {MANY}", "AT MOST")]
    for spec in file.models:
        config = known_config(spec)
        if config is None:
            rows.append((spec.name, "not known", *("-",) * 6))
            continue
        for found in forms_on(config, spec, gpus):
            rows.append((spec.name, *_cells(found)))
            if found.limits:
                limits.append((spec.name, found.form.title, *_limit_cells(found)))
    write_table(rows, out)
    each, notes = ("", NOTE) if gpus.count == 1 else (" each", NOTE + RANKS_NOTE)
    out.write(f"\n{fill(f'{gpus}: {readable_size(gpus.gpu.num_bytes)}{each}. {notes}', NOTE_WIDTH)}\n")
    if len(limits) > 1:
        out.write("\n")
        write_table(limits, out)
        out.write(f"\n{fill(LIMIT_NOTE, NOTE_WIDTH)}\n")


def forms_on(config: Mapping[str, Any], spec: ModelSpec, gpus: Gpus) -> Iterator[Found]:
    """Each form that a GPU computes in, and what comes of it on as many of them as divide the model."""
    for form in (PLAIN, FP8, FP8_KV) if gpus.gpu.does_fp8 else (PLAIN,):
        found = _found(config, spec, gpus, form)
        if form.quantization == "fp8" and (not found.fit.kv_tokens or _is_fp8(config)):
            stored = replace(form, title=form.title.replace("fp8", "fp8 files", 1), fp8_files=True)
            found = _found(config, spec, gpus, stored)
        yield found


def _is_fp8(config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint of this configuration is in FP8 itself."""
    return (config.get("quantization_config") or {}).get("quant_method") in FP8_METHODS


def _found(config: Mapping[str, Any], spec: ModelSpec, gpus: Gpus, form: Form) -> Found:
    if form.fp8_files and not _is_fp8(config):  # the blocks that experts are stored in are not divided
        config = {**config, "quantization_config": {"weight_block_size": [FP8_BLOCK, FP8_BLOCK]}}
    ranks = most_ranks(config, gpus.count)
    shape = shape_of(config, ranks)
    assert shape is not None, "its kind was known"
    settings = replace(spec.engine_config(), quantization=form.quantization, kv_dtype=form.kv_dtype)
    fits = fit(shape, settings, gpus.gpu.num_bytes, fp8_files=form.fp8_files)
    most = min(fits.kv_tokens // LIMIT_CONTEXT, step_limits(settings, is_cpu=False).max_num_seqs)
    limits = {
        batch: decode_limit(
            shape, settings, gpus.gpu.ceilings, gpus.gpu.link,
            batch=batch, context=LIMIT_CONTEXT, fp8_files=form.fp8_files,
        )
        for batch in (1, MANY, most)
        if 0 < batch <= most
    }  # fmt: skip
    return Found(form, ranks, fits, limits)


def known_config(spec: ModelSpec, *, look: bool = True) -> Mapping[str, Any] | None:
    """The configuration that is on this machine, unless `look` is false, else one that is shipped.

    None where there is neither, or where it is of a kind that is not counted.
    """
    state = describe(spec.source, spec.revision) if look else None
    if state is not None and state.directory is not None and state.kind != "gguf":
        config = read_config(state.directory)
    else:
        config = shipped_config(spec.source) or shipped_config(spec.name)
    if config is None or not isinstance(config.get("quantization_config") or {}, dict):
        return None
    return config if shape_of(config) is not None else None


def token_rows(file: ModelsFile, gpus: Sequence[Gpu]) -> Iterator[tuple[str, ...]]:
    """For the documentation: model, form, and thousands of tokens of the KV cache on each GPU, by shapes that ship.

    Not of models that fit on none of them.
    """
    for spec in file.models:
        config = known_config(spec, look=False)
        if config is None:
            continue
        rows: dict[str, dict[str, str]] = {}
        for gpu in gpus:
            for found in forms_on(config, spec, Gpus(gpu)):
                cell = f"{found.fit.kv_tokens // 1000:,}" + (" (files)" if found.form.fp8_files else "")
                row = rows.setdefault(found.form.title.replace("fp8 files", "fp8"), {})
                row[gpu.name] = cell if found.fit.kv_tokens else ""
        for title, cells in rows.items():
            if any(cells.values()):
                yield f"`{spec.name}`", title, *(cells.get(gpu.name, "") for gpu in gpus)


def rank_rows(spec: ModelSpec, places: Sequence[Gpus]) -> Iterator[tuple[str, ...]]:
    """For the documentation: a model on several GPUs, with the KV cache in 16 bits, by a shape that ships.

    Model, form, GPUs, thousands of tokens of the KV cache, the longest context, and limits as `print_fits` tells them.
    """
    config = known_config(spec, look=False)
    assert config is not None, "a shape of it ships"
    everywhere = [(gpus, found) for gpus in places for found in forms_on(config, spec, gpus)]
    for form in (PLAIN, FP8):
        for gpus, found in everywhere:
            if (found.form.quantization, found.form.kv_dtype) == (form.quantization, form.kv_dtype):
                cells = (f"{found.fit.kv_tokens // 1000:,}", f"{found.fit.context:,}", *_limit_cells(found))
                yield f"`{spec.name}`", found.form.title, str(gpus), *(cells if found.fit.kv_tokens else ("",) * 5)


def _cells(found: Found) -> tuple[str, ...]:
    sizes = readable_size(found.fit.weights), readable_size(found.fit.step)
    if not found.fit.kv_tokens:
        return found.form.title, str(found.ranks), *sizes, "does not fit", "-", "-"
    return (
        found.form.title,
        str(found.ranks),
        *sizes,
        f"{found.fit.kv_tokens:,}",
        f"{found.fit.context:,}",
        f"{found.fit.contexts:.1f}",
    )


def _limit_cells(found: Found) -> tuple[str, str, str]:
    one, many = (f"{found.limits[batch]:,.0f}" if batch in found.limits else "-" for batch in (1, MANY))
    return one, many, f"{found.limits[found.most]:,.0f} at {found.most:,}" if found.limits else "-"
