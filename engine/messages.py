"""All that crosses between the API process and an engine process: plain data, encoded with msgpack.

A decoder accepts only the union it was made for: an unknown tag, a missing field or a wrong type is
`msgspec.DecodeError`, and nothing in a message is ever executed. Frames above `MAX_FRAME_BYTES` are dropped by the
socket before they are read.
"""

import msgspec

from engine.constraint import Relaxed
from engine.sampling_params import SamplingParams

MAX_FRAME_BYTES = 64 * 1024 * 1024


class ImageArray(msgspec.Struct, frozen=True, array_like=True):
    """One array of an image, as the model's own image processor makes it: `data` is row after row."""

    name: str
    shape: list[int]
    dtype: str
    data: bytes


class AddImage(msgspec.Struct, tag="image", frozen=True):
    """An image of the request that comes next. `grid` is the family's measure of its size, in patches or tiles."""

    digest: bytes
    grid: list[int]
    arrays: list[ImageArray]


class ImageSpan(msgspec.Struct, frozen=True, array_like=True):
    """Where an image stands in a prompt: `length` tokens from `start` on."""

    start: int
    length: int
    digest: bytes


class AddRequest(msgspec.Struct, tag="add", frozen=True):
    """A prompt to be continued `n` times. Outputs come back under (`request_id`, index)."""

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    n: int = 1
    salt: bytes = b""
    """Separates tenants: blocks are shared only between requests of equal salt."""
    tenant: bytes = b""
    """Who asks, where a share of something is limited."""
    weight: float = 1.0
    """The tenant's share of the tokens where several wait."""
    priority: int = 0
    """Lower is earlier, between `-MAX_PRIORITY` and `MAX_PRIORITY` (`engine.scheduling.admission`)."""
    images: list[ImageSpan] = []
    """In the order of the prompt; each has come in an `AddImage` right before."""


class AbortRequest(msgspec.Struct, tag="abort", frozen=True):
    """Forget these requests, or only one choice of each; unknown and finished ones are ignored."""

    request_ids: list[int]
    index: int | None = None


class AskCached(msgspec.Struct, tag="ask_cached", frozen=True):
    """How many leading tokens of this prompt would the prefix cache spare a request that came now?"""

    question_id: int
    prompt_token_ids: list[int]
    salt: bytes = b""
    images: list[ImageSpan] = []


class Sleep(msgspec.Struct, tag="sleep", frozen=True):
    """Put the model away: its weights into the host's memory, its KV cache nowhere. Answered by `Asleep`."""


class Wake(msgspec.Struct, tag="wake", frozen=True):
    """Bring the model back. Answered by `Ready`."""


class Shutdown(msgspec.Struct, tag="shutdown", frozen=True):
    """End the engine process now."""


Inbound = AddRequest | AddImage | AbortRequest | AskCached | Sleep | Wake | Shutdown


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position: those of the token that is there, and of the likeliest in falling order."""

    logprob: float
    top_ids: list[int]
    top_logprobs: list[float]


class SequenceOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one step gave one sequence.

    The first output of a request, under index 0, is empty unless it is a refusal: the request is queued.
    `finish_reason` is None while the sequence runs, else `stop` (end-of-sequence or stop token, which is in
    `token_ids`), `length`, or `error` (then `error` says what went wrong and nothing more follows).
    """

    request_id: int
    index: int = 0
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Those of the prompt's tokens, from its second on, in pieces as they are computed: before any generated token."""
    finish_reason: str | None = None
    error: str | None = None
    error_param: str | None = None
    error_code: str | None = None
    num_cached_tokens: int = 0
    """Prompt tokens that the prefix cache spared; meaningful once there is a token or an end."""
    relaxed: Relaxed | None = None
    """What the request's constraint does not hold its answers to; in the first output alone."""
    queue_seconds: float | None = None
    """From the request's arrival in the engine to the sequence's first step; with its first token or its end."""
    compile_seconds: float | None = None
    """What the request waited for its constraint to be compiled; in the first output alone, or with the refusal."""

    @property
    def is_empty(self) -> bool:
        """Whether this says only that the request is queued."""
        return not self.token_ids and self.prompt_logprobs is None and self.finish_reason is None


class EngineStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counters and gauges of the engine at one moment. Counters only grow."""

    num_running: int = 0
    num_waiting: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    blocks_cached: int = 0
    """Blocks nobody owns whose content can still be hit; not counted in `blocks_free`."""
    blocks_owned: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    """Prompt tokens computed, without those the prefix cache spared."""
    cached_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    aborted: int = 0
    failed: int = 0
    encode_seconds: float = 0.0
    """Of encoding images."""

    def after(self, past: "EngineStats") -> "EngineStats":
        """These, with the counters of engines that have ended added."""
        sums = {name: getattr(self, name) + getattr(past, name) for name in COUNTERS}
        return msgspec.structs.replace(self, **sums)


COUNTERS = (
    "steps", "prompt_tokens", "cached_tokens", "generation_tokens", "preemptions", "aborted", "failed",
    "encode_seconds",
)  # fmt: skip
"""Those of the stats that only grow."""


class StepOutputs(msgspec.Struct, tag="outputs", frozen=True):
    """All outputs of one step, in one message. With no outputs it is the heartbeat of an idle engine."""

    outputs: list[SequenceOutput]
    stats: EngineStats


class Cached(msgspec.Struct, tag="cached", frozen=True):
    """What an `AskCached` is answered with."""

    question_id: int
    num_tokens: int


class Asleep(msgspec.Struct, tag="asleep", frozen=True):
    """The model is put away."""

    device_bytes: int
    """What is free again on its device."""
    host_bytes: int
    """What it takes in the host's memory."""


class Loading(msgspec.Struct, tag="loading", frozen=True, omit_defaults=True):
    """Progress of a load: `stage` is a short phrase, `fraction` 0 to 1 where it can be told."""

    stage: str
    fraction: float | None = None


class LoadFailed(msgspec.Struct, tag="load_failed", frozen=True, omit_defaults=True):
    """The model cannot be loaded; the engine process ends after this."""

    message: str
    hint: str | None = None


class ImageInfo(msgspec.Struct, frozen=True):
    """How a model takes images."""

    family: str
    """Whose way of cutting images it has."""
    token_id: int
    """The placeholder, of which as many stand in the prompt as an image has embeddings."""
    shown_id: int
    """The token by which a chat template shows an image; often the placeholder itself."""
    spacing: str = ""
    """Text that the model expects on both sides of it."""


class EngineInfo(msgspec.Struct, frozen=True):
    """What a loaded engine is and can do."""

    name: str
    model_dir: str
    """Local directory with config.json, tokenizer files and chat template."""
    architecture: str
    context: int
    vocab_size: int
    """Width of the logits."""
    eos_token_ids: list[int]
    device: str
    dtype: str
    attention: str
    block_size: int
    num_blocks: int
    max_num_seqs: int
    weights_bytes: int
    kv_bytes: int
    num_parameters: int
    load_seconds: float
    generation_defaults: dict[str, bool | int | float]
    """What the model's generation_config.json says of generating; whether it applies is the server's decision."""
    numerics: str
    """Names everything that can change the numbers: weights, dtype, device, attention, surgery, versions."""
    notes: list[str]
    """Lines the operator should see: a lowered context, a fusion that did not fit."""
    activation_bytes: int = 0
    """What a step takes beside the weights, where that is measured (CUDA)."""
    graph_bytes: int = 0
    """What is kept for recorded steps."""
    image_bytes: int = 0
    """What is kept of images, at most."""
    images: ImageInfo | None = None
    """None for a model that takes none."""
    ranks: int = 1
    """Processes, and on GPUs devices, that share it. `weights_bytes` and `kv_bytes` are those of all together,
    `activation_bytes` and `graph_bytes` of each."""

    @property
    def kv_tokens(self) -> int:
        """Tokens the KV cache can hold."""
        return self.block_size * self.num_blocks


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The model is loaded and requests may come."""

    info: EngineInfo


Outbound = StepOutputs | Cached | Asleep | Loading | LoadFailed | Ready

encode = msgspec.msgpack.Encoder().encode
decode_inbound = msgspec.msgpack.Decoder(Inbound).decode
decode_outbound = msgspec.msgpack.Decoder(Outbound).decode
