"""A server with the scripted engine as a program of its own: `python -m tests.server.serve_fake [PORT_FILE]`.

Runs what `headrace serve` runs, signals included. FAKE_ENGINE holds the script, SERVE_FAKE further settings as JSON.
"""

import json
import os
import socket
import sys
from pathlib import Path

from server.commands import serve
from server.commands.banner import Console
from server.commands.serve import ServeSettings
from tests.server.fakes import FAST_POLICY, engine_config


def main() -> int:
    """Serve on a free port, or the one that is set; it is written to the file named."""
    chosen = json.loads(os.environ.get("SERVE_FAKE", "{}"))
    for name in {"keys_file", "unix_socket"} & chosen.keys():
        chosen[name] = Path(chosen[name])
    real_bind = serve.bind

    def bind_and_tell(host: str, port: int) -> socket.socket:
        listener = real_bind(host, port)
        if len(sys.argv) > 1:
            temporary = Path(sys.argv[1] + ".new")
            temporary.write_text(str(listener.getsockname()[1]))
            temporary.rename(sys.argv[1])
        return listener

    serve.bind = bind_and_tell
    settings = {"port": 0} | chosen
    return serve.run(ServeSettings(models=(engine_config(),), policy=FAST_POLICY, **settings), Console())


if __name__ == "__main__":
    sys.exit(main())
