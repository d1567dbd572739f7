"""What an API client is told when an answer fails."""

import logging

from engine.errors import EngineDeadError, EngineStoppedError, RequestError
from server.protocol.errors import DRAINING, ApiError, from_request_error, internal_error

logger = logging.getLogger(__name__)

DIED_RETRY_SECONDS, STOPPED_RETRY_SECONDS = 2, 5


def as_api_error(error: Exception) -> ApiError:
    """What an API client is told of an error."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return from_request_error(error)
        case EngineStoppedError():
            return _engine_died("The server was told to end", STOPPED_RETRY_SECONDS, DRAINING)
        case EngineDeadError():
            return _engine_died("The engine of this model has ended unexpectedly", DIED_RETRY_SECONDS)
    logger.error("a request failed unexpectedly", exc_info=error)
    return internal_error()


def _engine_died(why: str, retry_after: int, reason: str | None = None) -> ApiError:
    return ApiError(
        503,
        f"{why}; the request can be sent again",
        type="server_error",
        code="engine_died",
        headers={"Retry-After": str(retry_after)},
        reason=reason,
    )
