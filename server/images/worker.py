"""The process that decodes images and cuts them for models: `python -m server.images.worker MEMORY SECONDS`.

Its parent is `server.images.pool`. What is decoded is anybody's, and decoders have had holes, so this process has no
torch, no network to speak of and no secrets, and the kernel ends it when it takes too much time or memory.
"""

import logging
import os
import resource
import sys
from pathlib import Path
from typing import IO

from engine.frames import read_frame, write_message
from engine.lifetime import die_with_parent, ending_unheard
from server.images.decode import DecodeError, ImageLimits, decode
from server.images.messages import ImageFailed, ImageRefused, PreparedImage, decode_question

logger = logging.getLogger(__name__)

NICENESS = 5


def run(source: IO[bytes], sink: IO[bytes], seconds: int) -> None:
    """Answer questions until there are no more."""
    from server.images.families import PROCESSORS
    from server.images.processor import Processor, prepare

    processors: dict[tuple[str, str], Processor] = {}
    while (frame := read_frame(source)) is not None:
        question = decode_question(frame)
        content = read_frame(source)
        assert content is not None, "an image follows"
        _limit_seconds(seconds)
        answer: PreparedImage | ImageRefused | ImageFailed
        try:
            pixels = decode(content, ImageLimits(question.max_pixels, question.max_side))
        except DecodeError as error:
            write_message(sink, ImageRefused(str(error)))
            continue
        try:
            key = (question.family, question.model_dir)
            if key not in processors:
                processors[key] = PROCESSORS[question.family](Path(question.model_dir), question.token_id)
            answer = prepare(processors[key], question, pixels)
        except DecodeError as error:
            answer = ImageRefused(str(error))
        except MemoryError:
            raise  # whatever is left of this process, another takes its place
        except Exception as error:  # transformers raises every kind for files that are not as it expects
            answer = ImageFailed(f"{type(error).__name__}: {error}")
        write_message(sink, answer)


def _limit_seconds(seconds: int) -> None:
    """Let the kernel end this process after so many more seconds of computing."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, hard))


def main(memory_bytes: int, seconds: int) -> int:
    """Entry point of the process."""
    die_with_parent()
    os.nice(NICENESS)
    # transformers imports torch where it is installed: ten seconds and hundreds of megabytes for nothing.
    sys.modules["torch"] = None  # type: ignore[assignment]
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    with ending_unheard():
        run(sys.stdin.buffer, sys.stdout.buffer, seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
