"""Replicas of a Headrace server on Ray Serve: `serve run deploy.ray_app:app model=smollm2 replicas=2`.

Each replica starts one `headrace serve` and passes requests and answers through to it, byte by byte, by a socket of the
file system. It ends when its server does, and Ray Serve starts another. Headrace itself knows nothing of Ray:
docs/deployment.md says how to set this up and what to expect of it.
"""

import asyncio
import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from engine.errors import EngineDeadError
from engine.lifetime import PR_SET_PDEATHSIG
from server.app import error_response
from server.routes.failures import as_api_error

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host"}
)
"""Headers that are between two neighbours, and the name that the next one has."""
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
START_SECONDS = 3600.0
DRAIN_SECONDS = 600.0


@serve.deployment(
    max_ongoing_requests=1024,
    graceful_shutdown_wait_loop_s=1.0,
    graceful_shutdown_timeout_s=DRAIN_SECONDS,
    health_check_period_s=2.0,
    health_check_timeout_s=30.0,
    request_router_config={"request_router_class": ROUTER},
)
class Replica:
    """One server, supervised. `arguments` are those of `headrace serve`."""

    async def __init__(self, arguments: list[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-ray-")
        path = str(Path(self._folder.name) / "server.sock")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "server.commands.cli", "serve", *arguments, "--unix-socket", path],
            preexec_fn=_end_with_parent,
        )
        self._client = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )
        await asyncio.wait_for(self._wait_until_ready(), START_SECONDS)
        self._watch = asyncio.create_task(self._end_with_server())

    async def __call__(self, request: Request) -> Response:
        """Ask the server what was asked, and answer what it answers."""
        headers = [(name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP]
        url = f"http://localhost{request.url.path}" + (f"?{request.url.query}" if request.url.query else "")
        asking = self._client.request(
            request.method, url, headers=headers, data=await request.body() or None, allow_redirects=False
        )
        try:
            answer = await asking
        except aiohttp.ClientError:
            return error_response(as_api_error(EngineDeadError("its server has ended")))
        passed = StreamingResponse(_pieces(answer), answer.status)
        passed.raw_headers = [
            (name.lower(), value) for name, value in answer.raw_headers if name.decode().lower() not in HOP_BY_HOP
        ]
        return passed

    async def check_health(self) -> None:
        """Raise if the server does not answer; Ray Serve puts another replica in the place of this one then."""
        async with self._client.get("http://localhost/livez", timeout=aiohttp.ClientTimeout(total=20)) as answer:
            answer.raise_for_status()

    async def __del__(self) -> None:
        """Ray Serve has waited for running requests; let the server end in good order."""
        self._watch.cancel()
        self._server.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._server.wait, 30)
        await self._client.close()
        self._folder.cleanup()

    async def _wait_until_ready(self) -> None:
        while True:
            if (code := self._server.poll()) is not None:
                raise RuntimeError(f"headrace serve has ended with exit code {code}; its output says why")
            with contextlib.suppress(aiohttp.ClientError):
                async with self._client.get("http://localhost/readyz") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.2)

    async def _end_with_server(self) -> None:
        """A replica without its server is none: end at once, without waiting for somebody to look."""
        while self._server.poll() is None:
            await asyncio.sleep(0.1)
        self._folder.cleanup()
        os._exit(1)


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body as it comes. If nobody reads on, the connection is closed, which ends the request in the server."""
    try:
        async for piece, _ in answer.content.iter_chunks():
            yield piece
    except aiohttp.ClientError as error:
        raise ConnectionError("the server of this replica has ended") from error
    finally:
        answer.close()


def _end_with_parent() -> None:
    """In the server: end when the replica does, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def app(args: dict[str, str]) -> Application:
    """What `serve run` and a Serve config deploy.

    `model`: the model, or several with spaces between. `options`: further ones of `headrace serve`, in one text.
    `replicas`: how many, or `least-most` for as many as running and waiting requests need, `waiting` for each. `gpus`,
    `cpus`: of each replica.
    """
    options: dict[str, Any] = {
        "ray_actor_options": {"num_gpus": float(args.get("gpus", 0)), "num_cpus": float(args.get("cpus", 1))}
    }
    least, _, most = args.get("replicas", "1").partition("-")
    if most:
        options["autoscaling_config"] = {
            "min_replicas": int(least),
            "max_replicas": int(most),
            "target_ongoing_requests": float(args.get("waiting", 32)),
        }
    else:
        options["num_replicas"] = int(least)
    arguments = [*args.get("model", "").split(), *shlex.split(args.get("options", ""))]
    return Replica.options(**options).bind(arguments)
