"""Downloads of models, each in a process of its own, before any room is made for what is downloaded.

A download takes long and often fails, and the size of a model is known when it is there. So meanwhile a model has no
memory, and no other is ended for it.
"""

import asyncio
from pathlib import Path

from engine.config import EngineConfig
from engine.errors import EngineDeadError, ModelLoadError
from engine.lifetime import describe_exit
from engine.weights.sources import check_source, describe
from server.fleet.deaths import end_when_silent
from server.fleet.engine_process import EngineProcess
from server.fleet.handle import EngineHandle
from server.fleet.policy import FleetPolicy


def is_to_download(config: EngineConfig) -> bool:
    """Whether a model has to be downloaded first. Reads files. Raises `ModelLoadError` for one that never loads."""
    check_source(config.source)
    return describe(config.source, config.revision).state == "to download"


async def download(handle: EngineHandle, directory: Path, policy: FleetPolicy) -> None:
    """Download a model; the handle is told how far that is. Raises `HeadraceError`.

    The process has its socket in `directory`, and is ended where this is cancelled.
    """
    spawning = asyncio.create_task(EngineProcess.spawn(handle.config, directory, policy.fetch_command))
    try:
        process = await asyncio.shield(spawning)
    except asyncio.CancelledError:
        await (await spawning).stop(0.0)  # a process that nobody knows of would go on
        raise
    except OSError as error:
        raise ModelLoadError(f"the download cannot be started: {error.strerror or error}") from error
    process.client.on_loading = handle.note_loading
    watchdog = asyncio.create_task(
        end_when_silent(process, policy.hang_after, policy.hang_after), name=f"watchdog {handle.name}"
    )
    try:
        await process.client.wait_ready()  # which it never is: it ends
    except EngineDeadError as error:
        if (code := await process.wait()) != 0:
            raise ModelLoadError(f"the download of {handle.name} {process.reason or describe_exit(code)}") from error
    finally:
        watchdog.cancel()
        await process.stop(0.0)
