"""One engine in a process of its own, as the server has it, asked with token ids and timed from outside."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from engine.config import EngineConfig
from engine.costs import ITEM_BYTES, Ceilings, Costs, costs_of
from engine.errors import ConfigError, HeadraceError
from engine.messages import EngineInfo
from engine.sampling_params import SamplingParams
from engine.sizing.formulas import shape_of
from engine.sizing.towers import decoder_of
from server.fleet.engine_process import ENGINE_COMMAND, EngineProcess
from server.fleet.private import PrivateDirectory

GRACE_SECONDS = 5.0
SPREAD, STEP, LEAST_ID = 7919, 31, 100
"""Of made-up prompts: how far apart their first tokens are, and the tokens of one; control tokens have low ids."""


class MeasureError(HeadraceError):
    """A measurement that does not come to an end."""


@dataclass(slots=True)
class Timed:
    """What came of one request, in seconds of the monotonic clock."""

    prompt_tokens: int
    sent: float
    times: list[float] = field(default_factory=list)
    """When each of its tokens came."""
    compile_seconds: float | None = None

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.sent


class EngineRun:
    """Asks a loaded engine."""

    def __init__(self, process: EngineProcess, info: EngineInfo) -> None:
        """Use `loaded`."""
        self.info = info
        self._process = process
        self._made = 0

    def made_up(self, length: int) -> list[int]:
        """A prompt that shares no beginning with one before."""
        self._made += 1
        span = max(2, self.info.vocab_size - LEAST_ID - 1)
        low = min(LEAST_ID, self.info.vocab_size // 2)
        return [low + (SPREAD * self._made + STEP * at) % min(span, self.info.vocab_size - low) for at in range(length)]

    async def answer(
        self, prompt: list[int], params: SamplingParams, on_end: Callable[[], None] | None = None
    ) -> Timed:
        """One request to its end. Raises `MeasureError`, `EngineDeadError`."""
        found = Timed(len(prompt), time.perf_counter())
        stream = self._process.client.submit(prompt, params)
        try:
            async for outputs in stream:
                now = time.perf_counter()
                for output in outputs:
                    if output.error is not None:
                        raise MeasureError(f"the engine failed a request: {output.error}")
                    found.times += [now] * len(output.token_ids)
        finally:
            stream.abort()
        found.compile_seconds = stream.compile_seconds
        if on_end is not None:
            on_end()
        return found

    async def answers(
        self, requests: Sequence[tuple[list[int], SamplingParams]], on_end: Callable[[], None] | None = None
    ) -> list[Timed]:
        """Requests that all come at once."""
        return list(await asyncio.gather(*(self.answer(prompt, params, on_end) for prompt, params in requests)))

    def costs(self) -> Costs:
        """What steps of text must move and do. Raises `ConfigError` where the model's configuration does not tell."""
        try:
            config = json.loads((Path(self.info.model_dir) / "config.json").read_text(encoding="utf-8"))
            is_fp8 = "fp8" in self.info.numerics
            return costs_of(without_images(self.info, config), decoder_of(config), is_fp8=is_fp8)
        except (OSError, ValueError, LookupError) as error:
            raise ConfigError(f"the model's configuration does not tell its sizes: {error!r}") from error


def without_images(info: EngineInfo, config: Mapping[str, Any]) -> EngineInfo:
    """An engine's sizes less what only images need, as far as its kind is counted."""
    shape = shape_of(config)
    idle = 0 if shape is None else shape.parameters - shape.of_text.parameters
    idle_bytes = idle * ITEM_BYTES.get(info.dtype.removeprefix("torch."), 2)  # never in FP8
    return msgspec.structs.replace(
        info, num_parameters=info.num_parameters - idle, weights_bytes=info.weights_bytes - idle_bytes
    )


@contextlib.asynccontextmanager
async def loaded(config: EngineConfig) -> AsyncIterator[EngineRun]:
    """An engine, ended in the end. Raises the `HeadraceError` of a load that fails."""
    directory = PrivateDirectory()
    try:
        process = await EngineProcess.spawn(config, directory.path, ENGINE_COMMAND)
        try:
            yield EngineRun(process, await process.client.wait_ready())
        finally:
            await process.stop(GRACE_SECONDS)
    finally:
        directory.remove()


def ceilings(info: EngineInfo, threads: int) -> Ceilings:
    """What the engine's device does at best, measured by a process of its own. Raises `MeasureError`."""
    dtype = info.dtype.removeprefix("torch.")
    return Ceilings(**measured("engine.measuring.ceilings", info.device, dtype, str(threads)))


def measured(module: str, *arguments: str) -> Any:
    """The JSON that a measuring program of the engine prints. Raises `MeasureError`."""
    command = [sys.executable, "-P", "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-1:])
        raise MeasureError(f"{module} ended with exit code {done.returncode}: {last}")
    return json.loads(done.stdout)
