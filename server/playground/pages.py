"""GET / and GET /playground/…: the page and its files, with the policy that a browser holds them to."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.playground.assets import PREFIX, Asset, Assets
from server.protocol.errors import ApiError

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Nothing from elsewhere, no script or style within the page, and no text that becomes HTML."""
HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"


def playground_router(assets: Assets) -> APIRouter:
    """The routes. They are pages and no part of the API, so its description does not list them."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page(request: Request) -> Response:
        """The page; asked for again at each visit, since it names the files of this version."""
        return _answer(request, assets.page, _ASK_AGAIN)

    @router.get(PREFIX + "{path:path}")
    async def file(request: Request, path: str) -> Response:
        """One of the page's files. Raises `ApiError` 404."""
        asset = assets.files.get(PREFIX + path)
        if asset is None:
            raise ApiError(
                404, "There is no such file of the playground here", type="not_found_error", code="not_found"
            )
        return _answer(request, asset, _FOR_EVER)

    return router


def _answer(request: Request, asset: Asset, caching: str) -> Response:
    headers = {**HEADERS, "cache-control": caching, "etag": asset.etag, "vary": "accept-encoding"}
    known = {tag.strip() for tag in request.headers.get("if-none-match", "").split(",")}
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    if asset.compressed is not None and _takes_gzip(request.headers.get("accept-encoding", "")):
        headers["content-encoding"] = "gzip"
        return Response(asset.compressed, headers=headers, media_type=asset.media_type)
    return Response(asset.body, headers=headers, media_type=asset.media_type)


def _takes_gzip(accepted: str) -> bool:
    for item in accepted.lower().split(","):
        name, _, quality = item.partition(";")
        if name.strip() in ("gzip", "*"):
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
