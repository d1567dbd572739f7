"""GET /openapi.json: what the routes take and answer, for machines."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

router = APIRouter()


@router.get("/openapi.json", summary="This description")
async def openapi(request: Request) -> JSONResponse:
    """The document of `server.openapi`, made at the first request."""
    return JSONResponse(request.app.state.describe())
