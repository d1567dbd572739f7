"""What is told of models and of the server itself, as shapes: lists of models, health, probes."""

from typing import Any, Literal

from server.protocol.shapes import Shape

ModelStanding = Literal[
    "unloaded", "loading", "ready", "yielding", "stalled", "restarting", "asleep", "unloading", "failed", "stopped"
]
"""Where a model stands, as `EngineHandle.standing` tells it."""


class CapabilitiesShape(Shape):
    """What can be asked of a model."""

    input: list[str]
    output: list[str]
    streaming: bool
    logprobs: bool
    tools: bool
    structured_outputs: list[str]
    reasoning: bool


class SamplingDefaultsShape(Shape):
    """What holds for a request that does not say."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


class LoadProgressShape(Shape):
    """How far a load is; `fraction` is 0 to 1 where it can be told."""

    stage: str
    fraction: float | None


class ModelShape(Shape):
    """A model of this server. `progress` is there while it loads, what follows that once it has been loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    state: ModelStanding
    load: Literal["startup", "on_demand", "pinned"]
    last_used: int | None
    memory_bytes: int | None
    requests: int
    error: str | None
    progress: LoadProgressShape | None = None
    context_length: int | None = None
    max_model_len: int | None = None
    architecture: str | None = None
    capabilities: CapabilitiesShape | None = None
    sampling_defaults: SamplingDefaultsShape | None = None
    generation_config: dict[str, Any] | None = None
    kv_cache_tokens: int | None = None
    weights_bytes: int | None = None
    kv_bytes: int | None = None
    load_seconds: float | None = None
    dtype: str | None = None
    device: str | None = None
    tensor_parallel: int | None = None


class ModelListShape(Shape):
    """Every model of this server."""

    object: Literal["list"]
    data: list[ModelShape]


class HealthShape(Shape):
    """Where the server stands, and each of its models."""

    status: Literal["ready", "loading", "restarting", "stalled", "failed", "stopped", "draining"]
    models: dict[str, ModelStanding]
    progress: dict[str, LoadProgressShape] | None = None


class LivezShape(Shape):
    """That the server's process answers."""

    status: Literal["live"]


class ReadyzShape(Shape):
    """Whether requests should be sent to this server."""

    status: Literal["ready", "loading", "restarting", "stalled", "failed", "stopped", "draining", "full"]
