"""The body of POST /admin/models/{name}/load and /unload, which may be left out."""

from server.protocol.json_values import check_object_keys
from server.protocol.strict_model import StrictModel
from server.protocol.unknown_fields import parse_body


class AdminRequest(StrictModel):
    """How the outcome is told."""

    stream: bool | None = None
    """An event at each stage, instead of one answer at the end."""


def read_admin_request(raw: bytes, *, ignore_unknown: bool = False) -> AdminRequest:
    """The request that a body holds; none is an empty one. Raises `ApiError` 400."""
    if not raw:
        return AdminRequest()
    check_object_keys(raw)
    return parse_body(AdminRequest, raw, ignore_unknown=ignore_unknown)[0]
