"""Every refusal that an API client can see, in OpenAI's error shape.

A refusal names the field, the limit and the given value, shortened: it never holds a traceback, a path or more than a
glimpse of the input.
"""

from typing import TYPE_CHECKING, Any

from engine.errors import RequestError

if TYPE_CHECKING:
    # Only spoken of here: checks of the engine on a GPU place images with no more installed than the engine needs.
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

MAX_ECHO_CHARS = 100
DRAINING = "draining"
"""The reason of refusals while the server ends, as `/health` calls it."""


class ApiError(Exception):
    """A request ends with this status and error body. `param` is the path of the field at fault.

    `reason` tells the log more than the code, which is for clients: a word of ours, and nothing of the request.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = headers or {}
        self.reason = reason

    def body(self) -> dict[str, Any]:
        """OpenAI's error object, ready for JSON."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def bad_request(message: str, *, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """400: the request itself is wrong."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    """400: the field is part of the contract, and what it asks for cannot be done here."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def model_not_found(model: str | None, *, is_restricted: bool = False) -> ApiError:
    """404 for a model name that is not served, or not for this key, if that `is_restricted` to some models."""
    which = "This server has no model for this key" if model is None else f"The model {shorten(model)} does not exist"
    if model is not None:
        which += " on this server, or is not for this key" if is_restricted else " on this server"
    return ApiError(
        404,
        f"{which}; GET /v1/models lists those that {'are' if is_restricted else 'do'}",
        type="not_found_error",
        param="model",
        code="model_not_found",
    )


def context_length_exceeded(message: str, *, param: str = "messages") -> ApiError:
    """400: the prompt, or the prompt with what shall follow it, does not fit. `message` names the numbers."""
    return ApiError(400, message, param=param, code="context_length_exceeded")


def overloaded(message: str, *, retry_after: int, reason: str) -> ApiError:
    """503: the server can take no more now. `retry_after` is in seconds, `reason` the limit's name for the log."""
    headers = {"Retry-After": str(retry_after)}
    return ApiError(503, message, type="server_error", code="overloaded", headers=headers, reason=reason)


def internal_error() -> ApiError:
    """500, for what should not have happened; the log holds the rest."""
    return ApiError(500, "The server met an unexpected error", type="server_error", code="internal_error")


def from_request_error(error: RequestError) -> ApiError:
    """The engine refused one request."""
    return bad_request(error.message, param=error.param, code=error.code)


def from_validation_error(error: "ValidationError") -> ApiError:
    """The first thing wrong with a request body, as one plain sentence."""
    return from_error_details(error.errors(include_url=False)[0])


def from_error_details(details: "ErrorDetails") -> ApiError:
    """One entry of pydantic's error list, as one plain sentence that names the field as OpenAI does."""
    param = field_path(details["loc"])
    kind = details["type"]
    if kind == "json_invalid":
        return bad_request(f"The request body is not valid JSON: {_context(details, 'error')}", code="invalid_json")
    if kind == "extra_forbidden":
        return ApiError(400, f"Unknown field: {param}", param=param, code="unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"Missing required field: {param}", param=param, code="missing_required_parameter")
    subject = param or "The request body"
    return bad_request(f"{subject} {_complaint(details)}", param=param, code=_CODES.get(kind, "invalid_value"))


def field_path(location: tuple[int | str, ...]) -> str | None:
    """`("messages", 1, "content")` as `messages[1].content`; names of union branches, `<so>`, are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not is_branch(part):
            path += f".{part}" if path else part
    if not path:
        return None
    return path if len(path) <= MAX_ECHO_CHARS else path[: MAX_ECHO_CHARS - 3] + "..."


def is_branch(part: int | str) -> bool:
    """Whether a part of pydantic's location names the branch of a union, and no place in the request."""
    return part in _BRANCHES


def shorten(value: object) -> str:
    """A glimpse of a given value, at most `MAX_ECHO_CHARS` characters and a little."""
    if isinstance(value, str):
        return (
            repr(value) if len(value) <= MAX_ECHO_CHARS else f"{value[:MAX_ECHO_CHARS]!r}... ({len(value)} characters)"
        )
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of many digits"
    return repr(value)[:MAX_ECHO_CHARS]


BRANCH_TEXT, BRANCH_LIST, BRANCH_NAME, BRANCH_OBJECT = "<text>", "<list>", "<name>", "<object>"
BRANCH_IDS, BRANCH_ID_LISTS = "<ids>", "<id lists>"
"""Tags of union branches in the request's models; they show up in pydantic's locations and nowhere else."""
WRONG_BRANCH = "wrong_branch"
"""Error type of a value that fits no branch of a union; its message is the rest of the sentence."""
_BRANCHES = frozenset({BRANCH_TEXT, BRANCH_LIST, BRANCH_NAME, BRANCH_OBJECT, BRANCH_IDS, BRANCH_ID_LISTS})

_TYPES = {
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "none_required": "must be null",
    "finite_number": "must be a finite number",
}
_LIMITS = {
    "greater_than": ("must be greater than", "gt"),
    "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be less than", "lt"),
    "less_than_equal": ("must be at most", "le"),
}
_CODES = dict.fromkeys([WRONG_BRANCH, *(set(_TYPES) - {"finite_number"})], "invalid_type")


def _complaint(details: "ErrorDetails") -> str:
    """What is wrong with the value: the rule of the sentence whose subject is the field."""
    kind, given = details["type"], details["input"]
    if kind in _TYPES:
        return f"{_TYPES[kind]}, got {shorten(given)}"
    if kind in _LIMITS:
        phrase, key = _LIMITS[kind]
        return f"{phrase} {_context(details, key)}, got {shorten(given)}"
    if kind in ("too_long", "string_too_long"):
        unit = "characters" if kind == "string_too_long" else "entries"
        return f"must have at most {_context(details, 'max_length')} {unit}, got {_size(given)}"
    if kind in ("too_short", "string_too_short"):
        unit = "characters" if kind == "string_too_short" else "entries"
        return f"must have at least {_context(details, 'min_length')} {unit}, got {_size(given)}"
    if kind in ("literal_error", "enum"):
        return f"must be {_context(details, 'expected')}, got {shorten(given)}"
    if kind == "value_error":
        return _context(details, "error")
    if kind == WRONG_BRANCH:
        return f"{details['msg']}, got {shorten(given)}"
    return f"is not valid, got {shorten(given)}"


def _context(details: "ErrorDetails", key: str) -> str:
    return str(details.get("ctx", {}).get(key, ""))


def _size(given: object) -> str:
    return str(len(given)) if isinstance(given, str | list | dict) else shorten(given)
