"""What the operator sees on the terminal: the progress of loading, then the ready banner."""

import json
import logging
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from engine.errors import HeadraceError
from engine.messages import EngineInfo
from server.commands.table import readable_memory
from server.config.sampling_defaults import SamplingDefaults
from server.fleet.handle import EngineHandle
from server.fleet.policy import ModelState
from server.telemetry.logs import json_line

BAR_CELLS = 24
_CLEAR_LINE = "\r\x1b[K"


class Console:
    """Writes to standard error: lines, and on a terminal one progress line that later lines do not tear."""

    def __init__(self, stream: TextIO | None = None, *, as_json: bool = False) -> None:
        """With `as_json` every line is an object, as those of the log are; the progress is lines then."""
        self._stream = stream or sys.stderr
        self._as_json = as_json
        self._is_terminal = self._stream.isatty() and not as_json
        self._has_bar = False
        self._last: dict[str, str] = {}
        self._errors: dict[str, str] = {}

    def line(self, text: str, level: str = "INFO") -> None:
        """Print a whole line, or several."""
        self.raw(json_line(text, level) if self._as_json else text)

    def raw(self, text: str) -> None:
        """Print what is in the console's format already."""
        self._write((_CLEAR_LINE if self._has_bar else "") + text + "\n")
        self._has_bar = False

    def error(self, error: HeadraceError, model: str | None = None) -> None:
        """Print an error, of which model it is, and what to do about it; of a model once, however often it fails."""
        if model is not None and self._errors.get(model) == str(error):
            return
        if model is not None:
            self._errors[model] = str(error)
        about = "" if model is None or model in str(error) else f"{model}: "
        self.line(f"headrace: {about}{error}" + (f"\n  {error.hint}" if error.hint else ""), "ERROR")

    def forget_error(self, model: str) -> None:
        """A model is well: its next error is printed, whichever that is."""
        self._errors.pop(model, None)

    def progress(self, handle: EngineHandle) -> None:
        """Show where a model's loading stands; a stage is a line unless this is a terminal."""
        progress = handle.progress
        if progress is None or handle.state is not ModelState.LOADING:
            return
        if self._is_terminal:
            bar = _bar(handle.name, progress.stage, progress.fraction)
            # A line that wraps cannot be cleared by returning to its start.
            self._write(_CLEAR_LINE + bar[: shutil.get_terminal_size().columns - 1])
            self._has_bar = True
        elif self._last.get(handle.name) != progress.stage:
            self._last[handle.name] = progress.stage
            self.line(f"{handle.name}: {progress.stage}")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            return  # a closed terminal must not stop the server


class ConsoleHandler(logging.Handler):
    """Log records as lines on the console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            self._console.raw(self.format(record))
        except Exception:
            self.handleError(record)


def ready_banner(
    url: str,
    handles: Iterable[EngineHandle],
    *,
    version: str,
    needs_key: bool,
    playground: bool = False,
    unix_socket: Path | None = None,
) -> str:
    """Where the server is, what it serves, and how to try it: in a browser if it has pages, and with one command.

    Of the `handles`, which are those of the start, some may have failed. `url` has no trailing slash; with
    `unix_socket` it is asked there.
    """
    handles = list(handles)
    failed = [handle.name for handle in handles if handle.is_missing]
    served = [(handle.info, handle.terms.defaults) for handle in handles if handle.info is not None]
    lines = [f"Headrace {version} is ready at {url}/v1" + (f" on the socket {unix_socket}" if unix_socket else "")]
    for info, defaults in served:
        lines += [
            f"  model     {info.name} ({info.architecture}, {_count(info.num_parameters)} parameters)",
            f"  running   {info.dtype} on {_place(info)}, loaded in {info.load_seconds:.1f} s",
            f"  memory    {memory_line(info)}",
        ]
        if defaults != SamplingDefaults():
            lines.append(f"  defaults  {defaults}, where a request does not say (models.yaml)")
        lines += [f"  note      {note}" for note in info.notes]
    if failed:
        lines.append(f"  missing   {', '.join(failed)}: could not be loaded, and will be tried again")
    if served:
        body = json.dumps(
            {"model": served[0][0].name, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
        )
        key = " -H 'Authorization: Bearer YOUR_KEY'" if needs_key else ""
        at = f"--unix-socket {shlex.quote(str(unix_socket))} " if unix_socket else ""
        lines.append(f"Try it in a browser at {url}/ or with:" if playground and not unix_socket else "Try it:")
        lines.append(f"  curl {at}{url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'")
    return "\n".join(lines)


def _bar(name: str, stage: str, fraction: float | None) -> str:
    if fraction is None:
        return f"{name}: {stage} ..."
    filled = round(max(0.0, min(1.0, fraction)) * BAR_CELLS)
    return f"{name}: [{'#' * filled}{'.' * (BAR_CELLS - filled)}] {fraction:4.0%} {stage}"


def memory_line(info: EngineInfo) -> str:
    """What takes how much, and what the KV cache is good for."""
    parts = (
        ("weights", info.weights_bytes), ("a step", info.activation_bytes), ("graphs", info.graph_bytes),
        ("images", info.image_bytes),
    )  # fmt: skip
    taken = "".join(f"{name} {readable_memory(num_bytes)}, " for name, num_bytes in parts if num_bytes)
    contexts = info.kv_tokens / info.context
    return (
        f"{taken}KV cache {readable_memory(info.kv_bytes)}: {info.kv_tokens:,} tokens,"
        f" {contexts:.1f} contexts of {info.context:,}"
    )


def _place(info: EngineInfo) -> str:
    """Its device; of ranks, all of theirs."""
    if info.ranks == 1:
        return info.device
    if ":" not in info.device:
        return f"{info.device}, in {info.ranks} ranks"
    first = int(info.device.rpartition(":")[2])
    return f"{info.device} to {first + info.ranks - 1}"


def _count(number: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)
