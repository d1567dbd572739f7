"""An engine process whose rank 1 says that it cannot load, and ends: `python -m tests.server.fleet.failing_rank`."""

import sys

from engine import process
from engine.ranks import team

FAILING = """
import sys
from multiprocessing.connection import Connection
from engine.ranks.messages import Failed, encode
connection = Connection(int(sys.argv[1]))
connection.recv_bytes()
connection.send_bytes(encode(Failed("its device has not enough memory", "Choose a smaller model, or more ranks.")))
"""

if __name__ == "__main__":
    team.COMMAND = (sys.executable, "-c", FAILING)
    sys.exit(process.main())
