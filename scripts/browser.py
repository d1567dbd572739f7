"""Install the browser for the tests of the playground, where that can be done: `python -m scripts.browser`.

It is Debian's chromium. Where it is not there and cannot be installed, this says why, and the tests that need it are
skipped with that reason; it is never a failure.
"""

import os
import shutil
import subprocess
import sys


def main() -> int:
    """Install it, or say why not; the exit code, which is always 0."""
    if shutil.which("chromium") or shutil.which("chromium-browser"):
        return 0
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        print("There is no chromium, and only root could install it: the playground's tests in it are skipped")
        return 0
    for command in ([apt, "update"], [apt, "install", "--yes", "--no-install-recommends", "chromium"]):
        environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        done = subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL)
        if done.returncode != 0:
            print("chromium could not be installed: the playground's tests in it are skipped")
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
