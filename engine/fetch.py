"""The process that downloads a model: `python -m engine.fetch ENDPOINT [PULSE]`, with its EngineConfig as msgpack on
standard input.

It speaks as `engine.process` does while that loads, and ends with 0 once the files are there. So nothing of a model is
in memory, and no room is made for it, before it is known to be there. Without torch.
"""

import sys

from engine.errors import HeadraceError
from engine.messages import LoadFailed, Loading
from engine.process import begin
from engine.weights.sources import fetch


def main() -> int:
    """Entry point of the process."""
    config, pipe = begin()
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
