"""What every route needs to know of this server."""

from dataclasses import dataclass, field

from server.edge.counters import ServerCounters
from server.edge.limits import Admission
from server.fleet.fleet import EngineHandle, Fleet, ModelState
from server.images.service import ImageService
from server.prompt.text_pool import TextPool
from server.protocol.errors import ApiError, model_not_found

LOADING_RETRY_SECONDS = 5
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

    def model(self, name: str | None) -> EngineHandle:
        """The model of that name, ready or not; the first that this server was told to serve if none is named.

        Raises `ApiError` 404.
        """
        if name is None or name in NAMELESS:
            return next(iter(self.fleet.handles.values()))
        handle = self.fleet.get(name)
        if handle is None:
            raise model_not_found(name)
        return handle


def not_ready(handle: EngineHandle) -> ApiError:
    """Why a model cannot answer now: 503, with Retry-After where waiting helps."""
    match handle.state:
        case ModelState.FAILED:
            reason, waiting_helps = "could not be loaded or died too often; the server's log says why", False
        case ModelState.RESTARTING:
            reason, waiting_helps = "is being restarted", True
        case ModelState.STOPPED:
            reason, waiting_helps = "is shutting down", True
        case _:
            reason, waiting_helps = "is loading", True
    return ApiError(
        503,
        f"The model {handle.name} {reason}",
        type="server_error",
        code="model_not_ready",
        headers={"Retry-After": str(LOADING_RETRY_SECONDS)} if waiting_helps else {},
    )
