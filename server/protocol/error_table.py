"""Every error that a client can meet, for the documentation and the description of the API."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """Codes that come with one status, and when they come."""

    status: int
    codes: tuple[str, ...]
    when: str


ERROR_TABLE = (
    ErrorRow(400, ("invalid_value", "invalid_type", "missing_required_parameter"), "a field is wrong"),
    ErrorRow(400, ("unknown_parameter",), "a field that does not exist"),
    ErrorRow(400, ("unsupported_parameter",), "a field, or a use of it, that exists and is not done here"),
    ErrorRow(400, ("context_length_exceeded",), "the prompt and what shall follow it do not fit"),
    ErrorRow(
        400,
        ("request_too_complex",),
        "reading it takes more time or memory than a request may [take](security.md#limits)",
    ),
    ErrorRow(400, ("invalid_json",), "the body is no JSON"),
    ErrorRow(400, ("bad_http",), "the request is no HTTP, or can be read in two ways"),
    ErrorRow(400, ("slow_reader",), "in a stream: the client is many thousand tokens behind, so it was ended"),
    ErrorRow(401, ("invalid_api_key",), "a key is needed"),
    ErrorRow(403, ("host_not_allowed",), "the `Host` is not one this server answers to"),
    ErrorRow(403, ("not_permitted",), "the key has not the right to do this: only operators load and unload models"),
    ErrorRow(404, ("model_not_found",), "no such model, or none for this key"),
    ErrorRow(404, ("not_found",), "no such path"),
    ErrorRow(405, ("method_not_allowed",), "the path knows not this method"),
    ErrorRow(408, ("request_timeout",), "the body did not arrive in [time](security.md#limits)"),
    ErrorRow(408, ("deadline_exceeded",), "the answer was not complete in the time that the request gives itself"),
    ErrorRow(409, ("model_busy",), "a model that has requests is not unloaded, nor put to sleep"),
    ErrorRow(409, ("no_room_to_sleep",), "the host's memory has no room for the weights of the model that shall sleep"),
    ErrorRow(413, ("request_too_large",), "the body is beyond its [limit](security.md#limits)"),
    ErrorRow(415, ("unsupported_media_type",), "another content type, or an encoded body"),
    ErrorRow(414, ("uri_too_long",), "the request line is beyond its [limit](security.md#limits)"),
    ErrorRow(
        431, ("too_many_headers", "headers_too_large"), "the headers are beyond their [limit](security.md#limits)"
    ),
    ErrorRow(
        429,
        ("rate_limit_exceeded",),
        "the key has used up its requests or tokens a minute (`type` says which), or its answers at once;"
        " `Retry-After` says when to come again",
    ),
    ErrorRow(500, ("internal_error", "engine_error"), "a fault of the server; its log says more"),
    ErrorRow(
        503,
        ("overloaded",),
        "the server or the model's queue is full, or the server is shutting down; `Retry-After` says when to come"
        " again",
    ),
    ErrorRow(
        503,
        ("queue_timeout",),
        "the request has waited for its turn as long as it may; `Retry-After` says when to come again",
    ),
    ErrorRow(
        503,
        ("model_not_ready",),
        "the model is still loading or restarting (`Retry-After`), or cannot be loaded, and why",
    ),
    ErrorRow(503, ("engine_died",), "the model's engine ended while it computed; the request can be sent again"),
    ErrorRow(504, ("deadline_exceeded",), "the answer was not complete in the time that the server gives a request"),
)


def error_codes(status: int) -> list[str]:
    """Every code that comes with a status. Raises `KeyError` for a status that no error has."""
    codes = [code for row in ERROR_TABLE if row.status == status for code in row.codes]
    if not codes:
        raise KeyError(status)
    return codes
