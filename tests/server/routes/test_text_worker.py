"""How the process for long texts ends where native code panics, and where nobody hears it."""

import io
import os
import subprocess
import sys
from typing import Any

import pytest

from engine.frames import HEADER, frame_of
from server.prompt.text_messages import ReadBody
from server.prompt.text_process import OUT_OF_MEMORY
from server.routes import text_worker


class PanicException(BaseException):
    """What pyo3 makes of a panic is no `Exception` either."""


def panicking(*_: Any) -> Any:
    raise PanicException("PyObject pointer is null")


@pytest.mark.parametrize(("peak", "ends"), [(60, OUT_OF_MEMORY), (20, None)])
def test_a_panic_is_want_of_memory_where_memory_was_short(
    peak: int, ends: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(text_worker, "limit_seconds", lambda _: None)
    monkeypatch.setattr(text_worker, "peak_bytes", lambda: peak)
    monkeypatch.setitem(text_worker.READERS, "chat", panicking)
    source = io.BytesIO(frame_of(ReadBody("chat")) + HEADER.pack(2) + b"{}")
    worker = text_worker.TextWorker(source, io.BytesIO(), memory_bytes=100, seconds=1)
    with pytest.raises(PanicException if ends is None else SystemExit) as ended:
        worker.run()
    assert ends is None or ended.value.code == ends


def test_the_most_memory_is_known() -> None:
    assert text_worker.peak_bytes() > 10 * 2**20


def test_who_is_not_heard_ends_without_a_word() -> None:
    code = """
from engine.lifetime import ending_unheard
import sys
sys.stdin.read()
with ending_unheard():
    print("an answer", flush=True)
raise SystemExit("not reached")
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    child.stdout.close()
    child.stdin.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 0
