"""The process that downloads a model: `python -m engine.fetch ENDPOINT [PULSE]`, with its EngineConfig as msgpack on
standard input.

It speaks as `engine.process` does while that loads, and ends with 0 once the files are there. So nothing of a model is
in memory, and no room is made for it, before it is known to be there. Without torch.
"""

import logging
import signal
import sys

import msgspec

from engine.config import EngineConfig
from engine.errors import HeadraceError
from engine.lifetime import die_with_parent
from engine.messages import LoadFailed, Loading
from engine.process import Pipe
from engine.pulse import Pulse
from engine.weights.sources import fetch


def main() -> int:
    """Entry point of the process."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the API process decides
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    config = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=EngineConfig)
    pipe = Pipe(sys.argv[1], Pulse(int(sys.argv[2]) if sys.argv[2:] else None))
    pipe.pulse.begin()
    try:
        fetch(config.source, config.revision, lambda stage, part: pipe.send(Loading(stage=stage, fraction=part)))
    except HeadraceError as error:
        pipe.send(LoadFailed(message=error.message, hint=error.hint))
        return 1
    finally:
        pipe.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
