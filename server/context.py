"""What every route needs to know of this server."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.edge.auth import Caller
from server.edge.limits import Admission
from server.edge.queues import ModelQueue
from server.edge.quotas import NO_RETRY
from server.fleet.fleet import Fleet
from server.fleet.handle import EngineHandle
from server.fleet.lease import Lease
from server.fleet.policy import ModelState
from server.fleet.reasons import public_reason
from server.images.service import ImageService
from server.prompt.text_pool import TextPool
from server.protocol.errors import ApiError, model_not_found
from server.telemetry.counters import ServerCounters

LOADING_RETRY_SECONDS = 5
LOAD_WAIT_SECONDS = 60.0
NAMELESS = frozenset({"dummy", "tgi"})
"""What huggingface_hub's client, now and in former versions, puts for a model when it was given only an address."""


@dataclass(slots=True)
class ServerContext:
    """The fleet and the counts of one running server; `app.state.context` holds it."""

    fleet: Fleet
    admission: Admission
    texts: TextPool = field(default_factory=TextPool)
    images: ImageService = field(default_factory=ImageService)
    counters: ServerCounters = field(default_factory=ServerCounters)
    ignore_unknown_fields: bool = False
    queues: Mapping[str, ModelQueue] = field(default_factory=dict)
    """By model."""
    load_wait: float = LOAD_WAIT_SECONDS
    """Seconds for which an answer in one piece waits for its model to be loaded."""
    vllm_names: bool = True
    """Whether /metrics has the series that vLLM has too under its names as well."""

    def model(self, name: str | None, caller: Caller) -> EngineHandle:
        """The model of that name, ready or not, if the caller may use it; its first one if none is named.

        Raises `ApiError` 404, which does not tell a model that is not there from one that is not for this caller.
        """
        if name is None or name in NAMELESS:
            handle = next((handle for handle in self.fleet.handles.values() if self.is_for(handle, caller)), None)
        else:
            handle = self.fleet.get(name)
        if handle is None or not self.is_for(handle, caller):
            raise model_not_found(name, is_restricted=caller.models is not None)
        return handle

    def is_for(self, handle: EngineHandle, caller: Caller) -> bool:
        """Whether the caller may use a model."""
        if caller.models is None:
            return True
        return any(handle.name in self.fleet.meant_by(entry) for entry in caller.models)

    def queue(self, handle: EngineHandle) -> ModelQueue:
        """What waits for a model."""
        return self.queues[handle.name]

    def check_queues(self, caller: Caller) -> None:
        """Raise `ApiError` 503 if no model of the caller's has room for one more, for which no body need be read."""
        full: ModelQueue | None = None
        for handle in self.fleet.handles.values():
            if self.is_for(handle, caller):
                if self.queue(handle).has_room(caller.salt):
                    return
                full = full or self.queue(handle)
        if full is not None:
            full.check(caller.salt)

    def lease(self, handle: EngineHandle) -> Lease:
        """A request's hold on a model, which is loaded for it if need be. Raises `ApiError` 503 where it is no use."""
        if handle.is_refusing or handle.state is ModelState.STOPPED:
            raise not_ready(handle)
        return self.fleet.lease(handle)


def not_ready(handle: EngineHandle) -> ApiError:
    """Why a model cannot answer now: 503, with Retry-After where waiting helps, else what keeps clients from it."""
    waiting_helps = True
    match handle.state:
        case ModelState.FAILED:
            reason = "could not be loaded" if handle.info is None else "cannot be used"
            reason += f": {public_reason(handle)}" if handle.error is not None else ""
            waiting_helps = False
        case ModelState.RESTARTING:
            reason = "is being restarted"
        case ModelState.STOPPED:
            reason = "is shutting down"
        case ModelState.UNLOADED | ModelState.UNLOADING:
            reason = "was unloaded"
        case ModelState.READY if handle.is_closed:
            reason = "takes no new requests until another has been loaded, which has waited long for its memory"
        case _:
            stage = "" if handle.progress is None else f" ({stage_words(handle)})"
            reason = f"is loading{stage}"
    return ApiError(
        503,
        f"The model {handle.name} {reason}",
        type="server_error",
        code="model_not_ready",
        headers={"Retry-After": str(LOADING_RETRY_SECONDS)} if waiting_helps else dict(NO_RETRY),
        reason=handle.standing,
    )


def stage_words(handle: EngineHandle) -> str:
    """Where the load of a model stands, in one line: `reading weights, 40 %`."""
    if handle.state is ModelState.READY and handle.is_closed:
        return "waiting until another model has been loaded"
    if handle.state is not ModelState.LOADING or handle.progress is None:
        return handle.state.value
    stage = " ".join(handle.progress.stage.split())
    fraction = handle.progress.fraction
    return stage if fraction is None else f"{stage}, {round(100 * fraction)} %"
