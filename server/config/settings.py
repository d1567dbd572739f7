"""models.yaml: which models there are, and how each is to be served.

    file = load_models_file(Path("models.yaml"))
    configs = [spec.engine_config() for spec in file.at_startup]

The file is read once. Whatever is wrong in it (an unknown key, a wrong type, a name given twice) is a `ConfigError`
that says where: `models.yaml:12: ...`.
"""

import difflib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from engine.config import (
    GRAPHS,
    MOST_RANKS,
    Activations,
    AttentionName,
    ConstraintBackend,
    Dtype,
    EngineConfig,
    Graphs,
    KvDtype,
    Quantization,
    size_in_bytes,
)
from engine.errors import ConfigError, RequestError
from engine.sampling_params import SamplingParams
from engine.weights.sources import HUB_ID
from server.config.image_policy import NOWHERE, OFF, RemotePolicy, parse_policy
from server.config.models_file import Field, Section, parse_list, parse_mapping, read_yaml
from server.config.sampling_defaults import SamplingDefaults
from server.markup.formats import ToolsSetting

Load = Literal["startup", "on_demand", "pinned"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """One model of models.yaml; `EngineConfig` says what its settings mean."""

    name: str
    aliases: tuple[str, ...] = ()
    source: str
    revision: str | None = None
    load: Load = "on_demand"
    """When it is loaded; `server.fleet.policy.Residence` says what each means."""
    idle_timeout: float | None = None
    """Seconds without a request after which it is ended; None: as the command line says."""
    max_queue: int | None = None
    max_queue_tokens: int | None = None
    queue_timeout: float | None = None
    request_timeout: float | None = None
    """Bounds of its queue and the time of its requests (`server.edge.queues.QueueLimits`); None: as the command line
    says, and of the times 0: no limit."""
    dtype: Dtype = "auto"
    quantization: Quantization = "auto"
    kv_dtype: KvDtype = "auto"
    activations: Activations = "int16"
    device: str = "auto"
    tensor_parallel: int = 1
    step_timeout: float = 0.0
    context: int | None = None
    memory: str = "auto"
    max_num_seqs: int = 0
    attention: AttentionName = "auto"
    graphs: Graphs = "auto"
    fusion: bool = True
    prefix_cache: bool = True
    constraints: ConstraintBackend = "llguidance"
    threads: int = 0
    tools: ToolsSetting | None = None
    """How it calls tools, where its chat template does not tell."""
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)
    images: RemotePolicy = NOWHERE
    """Where images of its requests may be fetched from."""
    inputs: tuple[str, ...] = ("text",)
    """What it takes, as far as the file knows; a checkpoint that is here is looked at instead."""
    size: int | None = None
    """Bytes of the download, as far as the file knows."""

    def engine_config(self) -> EngineConfig:
        """What the engine process of this model is told."""
        return EngineConfig(
            name=self.name,
            source=self.source,
            revision=self.revision,
            dtype=self.dtype,
            quantization=self.quantization,
            kv_dtype=self.kv_dtype,
            activations=self.activations,
            device=self.device,
            tensor_parallel=self.tensor_parallel,
            step_timeout=self.step_timeout,
            context=self.context,
            memory=self.memory,
            max_num_seqs=self.max_num_seqs,
            attention=self.attention,
            graphs=GRAPHS[self.graphs],
            fusion=self.fusion,
            prefix_cache=self.prefix_cache,
            constraints=self.constraints,
            threads=self.threads,
        )


@dataclass(frozen=True)
class ModelsFile:
    """The whole file. `default` is the name of the model that is served when nobody names one."""

    default: str
    models: tuple[ModelSpec, ...]

    @cached_property
    def _by_name(self) -> dict[str, ModelSpec]:
        return {name: spec for spec in self.models for name in (spec.name, *spec.aliases)}

    @property
    def at_startup(self) -> tuple[ModelSpec, ...]:
        """The models to load when the command line names none: the default first, if it is one of them."""
        loaded = [spec for spec in self.models if spec.load != "on_demand"]
        return tuple(sorted(loaded, key=lambda spec: spec.name != self.default))

    def get(self, name: str) -> ModelSpec | None:
        """The model of that name or alias."""
        return self._by_name.get(name)

    def find(self, name: str) -> ModelSpec:
        """The model of that name or alias. Raises `ConfigError`, with the nearest name as its hint."""
        if (spec := self.get(name)) is None:
            raise self.unknown(name)
        return spec

    def nearest(self, name: str) -> str | None:
        """`did you mean` the name or alias that looks most like this one; None if none does."""
        return _nearest(name, self._by_name)

    def unknown(self, name: str) -> ConfigError:
        """An error to be raised: that there is no such model."""
        known = f"it has {', '.join(model.name for model in self.models)}"
        return ConfigError(f"models.yaml has no model {name!r}", hint=self.nearest(name) or known)


INPUTS = ("text", "image")
_MODEL_FIELDS = {
    "name": Field("text", required=True),
    "aliases": Field("texts"),
    "source": Field("text"),
    "revision": Field("text"),
    "load": Field("text", choices=("startup", "on_demand", "pinned")),
    "idle_timeout": Field("number"),
    "max_queue": Field("count"),
    "max_queue_tokens": Field("count"),
    "queue_timeout": Field("number"),
    "request_timeout": Field("number"),
    "dtype": Field("text", choices=("auto", "float32", "bfloat16", "float16")),
    "quantization": Field("text", choices=("auto", "none", "fp8")),
    "kv_dtype": Field("text", choices=("auto", "fp8")),
    "activations": Field("text", choices=("int8", "int16")),
    "device": Field("text"),
    "tensor_parallel": Field("count", most=MOST_RANKS),
    "step_timeout": Field("number"),
    "context": Field("count"),
    "memory": Field("memory"),
    "max_num_seqs": Field("count"),
    "attention": Field("text", choices=("auto", "triton", "reference", "sdpa", "cpu")),
    "graphs": Field("text", choices=get_args(Graphs)),
    "fusion": Field("switch"),
    "prefix_cache": Field("switch"),
    "constraints": Field("text", choices=("llguidance", "outlines_core")),
    "threads": Field("count"),
    "tools": Field("text", choices=("hermes", "llama3", "deepseek", "generic")),
    "sampling": Field("mapping"),
    "images": Field("mapping"),
    "inputs": Field("texts", choices=INPUTS),
    "size": Field("size"),
}
_SAMPLING_FIELDS = {
    "temperature": Field("number"),
    "top_p": Field("number"),
    "top_k": Field("count"),
    "min_p": Field("number"),
    "repetition_penalty": Field("number"),
}
_IMAGE_FIELDS = {"remote": Field("words"), "private": Field("texts")}
_FILE_FIELDS = {"default": Field("text", required=True), "models": Field("list", required=True)}


def find_models_file() -> Path | None:
    """models.yaml of the working directory, else the one that came with the package or its source."""
    here = Path(__file__).resolve()
    candidates = (Path("models.yaml"), here.with_name("models.yaml"), here.parents[2] / "models.yaml")
    return next((path for path in candidates if path.is_file()), None)


def default_models_file() -> Path:
    """`find_models_file`. Raises `ConfigError` where there is none."""
    path = find_models_file()
    if path is None:
        raise ConfigError("there is no models.yaml here", hint="name one with --models FILE")
    return path


def load_models_file(path: Path) -> ModelsFile:
    """Read and check models.yaml. Raises `ConfigError` for whatever is wrong, with the line."""
    top = parse_mapping(read_yaml(path), path.name, _FILE_FIELDS, "the file")
    models: list[tuple[ModelSpec, bool]] = []
    """With whether its entry says when it is loaded."""
    seen: dict[str, int] = {}
    for node in parse_list(top, "models"):
        section = parse_mapping(node, path.name, _MODEL_FIELDS, "a model")
        spec = _model_spec(section)
        for name, key in ((spec.name, "name"), *((alias, "aliases") for alias in spec.aliases)):
            if name in seen:
                raise section.error(key, f"the name {name!r} is taken by line {seen[name]} already")
            seen[name] = section.line(key)
        models.append((spec, "load" in section.values))
    default = top.values["default"]
    if default not in seen:
        raise top.error("default", f"there is no model {default!r} below", hint=_nearest(default, seen))
    name = next(spec.name for spec, _ in models if default in (spec.name, *spec.aliases))
    # The default is loaded at start, unless its entry says otherwise.
    specs = (replace(spec, load="startup") if spec.name == name and not says else spec for spec, says in models)
    return ModelsFile(default=name, models=tuple(specs))


def _model_spec(section: Section) -> ModelSpec:
    values = dict(section.values)
    if "*" in values["name"]:
        raise section.error(
            "name", f"a name is one name, without '*', got {values['name']!r}", hint="put it in aliases"
        )
    values.setdefault("source", values["name"])
    if "aliases" in values:
        values["aliases"] = tuple(values["aliases"])
    if "inputs" in values:
        values["inputs"] = tuple(values["inputs"])
    if "size" in values:
        values["size"] = size_in_bytes(values["size"])
    if "revision" in values and not HUB_ID.fullmatch(values["source"]):
        raise section.error("revision", f"revision is of hub sources only, and {values['source']!r} is none")
    if "sampling" in values:
        values["sampling"] = _sampling(parse_mapping(values["sampling"], section.file, _SAMPLING_FIELDS, "sampling"))
    if "images" in values:
        values["images"] = _images(parse_mapping(values["images"], section.file, _IMAGE_FIELDS, "images"))
    device = values.get("device", "auto")
    if device not in ("auto", "cpu", "cuda") and not (device.startswith("cuda:") and device[5:].isdigit()):
        raise section.error("device", f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    return ModelSpec(**values)


def _images(section: Section) -> RemotePolicy:
    try:
        return parse_policy(section.values.get("remote", OFF), section.values.get("private", []))
    except ConfigError as error:
        raise section.error("remote", error.message) from error


def _sampling(section: Section) -> SamplingDefaults:
    try:
        SamplingParams(max_tokens=1, **section.values).check(vocab_size=1)
    except RequestError as error:
        raise section.error(error.param or "", error.message) from error
    return SamplingDefaults(**section.values)


def _nearest(name: str, known: dict[str, ModelSpec] | dict[str, int]) -> str | None:
    """`did you mean` the known name that looks most like this one, whole or by its part after the slash."""
    tails = {candidate.lower().rpartition("/")[2]: candidate for candidate in known}
    tails |= {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), tails, n=1, cutoff=0.6)
    return f"did you mean {tails[close[0]]}?" if close else None
