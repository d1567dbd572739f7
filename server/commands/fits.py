"""`headrace models --gpu NAME`: what of models.yaml fits on a GPU, in which form, and with how much context.

It is computed from configurations alone: those that are here, else the shapes that come with Headrace.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from engine.config import KvDtype, Quantization
from engine.sizing.fit import Fit, fit
from engine.sizing.shape import ModelShape, shape_of
from engine.weights.random_model import shipped_config
from engine.weights.sources import describe
from server.commands.table import readable_size, write_table
from server.config.settings import ModelsFile, ModelSpec
from server.fleet.gpus import Gpu


@dataclass(frozen=True, slots=True)
class Form:
    """How weights and KV cache are kept."""

    title: str
    quantization: Quantization = "none"
    kv_dtype: KvDtype = "auto"
    fp8_files: bool = False
    """Only where the files have the weights in FP8: read in full they are too large."""


NOTE = """Computed for an empty one, not tried. 'fp8 files' are checkpoints in FP8, where weights of 16 bits are too
large to be read first. Not known is what sees images, and what is neither here nor a shape that ships."""
PLAIN = Form("16 bits")
FP8 = Form("fp8", "fp8")
FP8_KV = Form("fp8, kv fp8", "fp8", "fp8")


def print_fits(file: ModelsFile, gpu: Gpu, out: TextIO) -> None:
    """Write the table of a file's models on a GPU."""
    rows: list[tuple[str, ...]] = [("MODEL", "FORM", "WEIGHTS", "STEPS", "KV TOKENS", "CONTEXT", "AT ONCE")]
    for spec in file.models:
        shape = known_shape(spec)
        if shape is None:
            rows.append((spec.name, "not known", *("-",) * 5))
        else:
            rows += [(spec.name, *_cells(form, found)) for form, found in forms_on(shape, spec, gpu)]
    write_table(rows, out)
    out.write(f"\n{gpu.title}: {readable_size(gpu.num_bytes)}. {NOTE}\n")


def forms_on(shape: ModelShape, spec: ModelSpec, gpu: Gpu) -> Iterator[tuple[Form, Fit]]:
    """Each form that a GPU computes in, and what comes of it."""
    forms = (PLAIN, FP8, FP8_KV) if gpu.does_fp8 and not shape.has_experts else (PLAIN,)
    for form in forms:
        config = replace(spec.engine_config(), quantization=form.quantization, kv_dtype=form.kv_dtype)
        found = fit(shape, config, gpu.num_bytes)
        if not found.kv_tokens and form.quantization == "fp8":
            form = replace(form, title=form.title.replace("fp8", "fp8 files", 1), fp8_files=True)
            found = fit(shape, config, gpu.num_bytes, fp8_files=True)
        yield form, found


def known_shape(spec: ModelSpec, *, look: bool = True) -> ModelShape | None:
    """By the configuration that is on this machine, unless `look` is false, else by one that is shipped; else None."""
    state = describe(spec.source, spec.revision) if look else None
    if state is not None and state.directory is not None and state.kind != "gguf":
        try:
            told = json.loads((state.directory / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return shape_of(told) if isinstance(told, dict) else None
    config = shipped_config(spec.source) or shipped_config(spec.name)
    return None if config is None else shape_of(config)


def token_rows(file: ModelsFile, gpus: Sequence[Gpu]) -> Iterator[tuple[str, ...]]:
    """For the documentation: model, form, and thousands of tokens of the KV cache on each GPU, by shapes that ship."""
    for spec in file.models:
        shape = known_shape(spec, look=False)
        if shape is None:
            continue
        found: dict[str, dict[str, str]] = {}
        for gpu in gpus:
            for form, fits in forms_on(shape, spec, gpu):
                cell = f"{fits.kv_tokens // 1000:,}" + (" (files)" if form.fp8_files else "")
                row = found.setdefault(form.title.replace("fp8 files", "fp8"), {})
                row[gpu.name] = cell if fits.kv_tokens else ""
        for title, cells in found.items():
            yield f"`{spec.name}`", title, *(cells.get(gpu.name, "") for gpu in gpus)


def _cells(form: Form, found: Fit) -> tuple[str, ...]:
    if not found.kv_tokens:
        return form.title, readable_size(found.weights), readable_size(found.step), "does not fit", "-", "-"
    return (
        form.title,
        readable_size(found.weights),
        readable_size(found.step),
        f"{found.kv_tokens:,}",
        f"{found.context:,}",
        f"{found.contexts:.1f}",
    )
