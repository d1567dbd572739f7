"""The process that does the text work of large bodies: `python -m server.routes.text_worker MEMORY SECONDS NICENESS`.

Its parent is `server.prompt.text_process`; `server.prompt.text_messages` says what crosses. Native code cannot be
stopped from within, so the kernel does it: address space is limited to MEMORY bytes, and each body has SECONDS of the
processor's time, after which this process ends. NICENESS is its rank among processes.
"""

import contextlib
import gc
import logging
import os
import resource
import sys
from pathlib import Path
from typing import IO

from engine.frames import read_frame, write_message
from engine.lifetime import die_with_parent, ending_unheard
from server.markup.formats import ToolsSetting
from server.prompt.text_messages import (
    Answered,
    BodyRead,
    Failed,
    MakePrompts,
    PromptMade,
    ReadBody,
    decode_question,
)
from server.prompt.text_process import OUT_OF_MEMORY
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.errors import ApiError, internal_error
from server.routes.text_jobs import READERS, Model, TextJob

logger = logging.getLogger(__name__)

MAX_TOKENIZERS = 4


class TextWorker:
    """Answers the questions of `text_messages`, one after the other."""

    def __init__(self, source: IO[bytes], sink: IO[bytes], memory_bytes: int, seconds: int) -> None:
        self._source = source
        self._sink = sink
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._job: TextJob | None = None
        self._tokenizers: dict[tuple[str, ToolsSetting | None], ChatTokenizer] = {}

    def run(self) -> None:
        """Until there are no more questions."""
        while (frame := read_frame(self._source)) is not None:
            gc.collect()
            question = decode_question(frame)
            try:
                match question:
                    case ReadBody():
                        self._read(question)
                    case MakePrompts():
                        self._make(question)
            except ApiError as error:
                write_message(self._sink, Failed.of(error))
            except BrokenPipeError:
                raise
            except (MemoryError, RecursionError):
                os._exit(OUT_OF_MEMORY)
            except Exception:
                logger.exception("text work failed unexpectedly")
                write_message(self._sink, Failed.of(internal_error()))
            except BaseException:
                # Native code that finds no memory panics, which is no `Exception`, and says so itself; it may panic of
                # other things. The peak is of what was given, and what was refused may be as large as that.
                if peak_bytes() > self._memory_bytes // 4:
                    os._exit(OUT_OF_MEMORY)
                raise

    def _read(self, question: ReadBody) -> None:
        self._job = None
        limit_seconds(self._seconds)
        body = read_frame(self._source)
        assert body is not None, "a body follows"
        self._job = READERS[question.route](body, question.ignore_unknown)
        job = self._job
        read = BodyRead(
            job.model, job.num_choices, job.is_stream, list(job.images), job.timeout, answer_tokens=job.answer_tokens
        )
        write_message(self._sink, read)

    def _make(self, question: MakePrompts) -> None:
        job, self._job = self._job, None
        assert job is not None, "a body was read before"
        tokenizer = self._tokenizer(question.info.model_dir, question.tools)
        model = Model(tokenizer, question.info, question.defaults, question.image_tokens)
        for plan in job.plans(model) if job.plans else ():
            write_message(self._sink, PromptMade(plan))
        write_message(self._sink, job.answer(model) if job.answer else Answered())

    def _tokenizer(self, directory: str, tools: ToolsSetting | None) -> ChatTokenizer:
        key = (directory, tools)
        if key not in self._tokenizers:
            if len(self._tokenizers) >= MAX_TOKENIZERS:
                self._tokenizers.clear()
            self._tokenizers[key] = ChatTokenizer.load(Path(directory), tools=tools)
        return self._tokenizers[key]


def peak_bytes() -> int:
    """The most address space that this process has had; 0 where the kernel does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmPeak:"):
                return int(line.split()[1]) * 1024
    return 0


def limit_seconds(seconds: int) -> None:
    """Let the kernel end this process after so many more seconds of computing."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds, hard))


def main(memory_bytes: int, seconds: int, niceness: int) -> int:
    """Entry point of the process."""
    die_with_parent()
    os.nice(niceness)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    gc.freeze()
    gc.disable()  # a body may be millions of objects, of which none is garbage before the next question
    with ending_unheard():
        TextWorker(sys.stdin.buffer, sys.stdout.buffer, memory_bytes, seconds).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
