"""What the fleet is told, and the words for where a model stands."""

from dataclasses import dataclass, field
from enum import StrEnum

from server.config.image_policy import NOWHERE, RemotePolicy
from server.config.sampling_defaults import SamplingDefaults
from server.config.settings import Load
from server.fleet.engine_process import ENGINE_COMMAND, FETCH_COMMAND
from server.markup.formats import ToolsSetting


class ModelState(StrEnum):
    """Where a model stands."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    """Asked for: it waits for memory, or its engine process reads the weights."""
    READY = "ready"
    RESTARTING = "restarting"
    ASLEEP = "asleep"
    """Its process is there, its weights in the host's memory: who asks for it wakes it."""
    UNLOADING = "unloading"
    """Its process is being ended, or it falls asleep."""
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class Residence:
    """When a model is in memory."""

    load: Load = "startup"
    """`startup` and `pinned` models are loaded at start, `on_demand` ones when they are asked for; a `pinned` one is
    not ended to make room, nor for being idle."""
    idle_timeout: float | None = None
    """Seconds without a request after which it is ended; None: never."""

    @property
    def is_at_start(self) -> bool:
        """Whether it is loaded with the server."""
        return self.load != "on_demand"

    @property
    def is_pinned(self) -> bool:
        """Whether it stays whatever comes."""
        return self.load == "pinned"


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """How one model is served, beyond what its engine is told."""

    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    tools: ToolsSetting | None = None
    """How it calls tools, where its chat template does not tell."""
    images: RemotePolicy = NOWHERE
    """Where images of its requests may be fetched from."""
    residence: Residence = field(default_factory=Residence)
    """When it is in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetPolicy:
    """Times and limits of the supervision and of making room, in seconds."""

    command: tuple[str, ...] = ENGINE_COMMAND
    """Program of the engine process; the endpoint is appended."""
    fetch_command: tuple[str, ...] = FETCH_COMMAND
    """Program of the process that downloads a model."""
    first_restart_delay: float = 0.5
    """Pause before the first restart; each further death within the window doubles it."""
    max_restart_delay: float = 30.0
    max_crashes: int = 5
    """Deaths within the window after which a model has failed."""
    crash_window: float = 600.0
    stale_after: float = 15.0
    """Silence after which an engine is not called ready."""
    hang_after: float = 120.0
    """Silence after which an engine is replaced. It speaks after each step, and once a second when idle."""
    stop_grace: float = 3.0
    """What an engine gets to end by itself."""
    first_retry_delay: float = 10.0
    """After a failed load, how long requests are told so before one starts the next; doubles with each failure."""
    max_retry_delay: float = 600.0
    least_stay: float = 1.0
    longest_stay: float = 15.0
    """A model is not ended for another before it has been there for as long as its load took, within these bounds:
    however models take turns, answers have their time too."""
    patience: float = 20.0
    """How long a model waits for others to fall idle; then those in its way take no new requests until it is loaded."""
