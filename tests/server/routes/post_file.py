"""A client in a process of its own: `python post_file.py PORT PATH FILE` sends a body and prints status and answer."""

import http.client
import sys
from pathlib import Path


def main() -> None:
    """Send it."""
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    connection.request("POST", sys.argv[2], Path(sys.argv[3]).read_bytes(), {"content-type": "application/json"})
    answer = connection.getresponse()
    sys.stdout.write(f"{answer.status}\n{answer.read().decode()}")


if __name__ == "__main__":
    main()
