"""Play the steps of Dockerfile.cuda without Docker, and ask the server that comes out a question.

    python -m scripts.container_root DIRECTORY [--torch FILE.whl] [--base RELEASE] [--mirror URL] [--keep]

Each stage is a root of its own in DIRECTORY, which debootstrap makes of a release of Debian (or Ubuntu), and each RUN
is run in it, by chroot in namespaces of its own. The wheels are those of the lock file; `--torch` names a CPU build of
torch that is taken in place of the locked one and of CUDA's libraries, which are gigabytes. Then the ENTRYPOINT starts
the server as the image's user, on the CPU if there is no GPU, its HEALTHCHECK is run until it succeeds, a question is
asked, and SIGTERM must end it in good order. Needs root, debootstrap, and 3 GB of disk.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.dockerfile import Instruction, expanded, parse_dockerfile
from scripts.lock import LOCK, OF_TORCH, read_lock

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 300
END_SECONDS = 30
KEY = "of-this-trial"
CERTIFICATES = "/etc/certificates-of-the-machine.crt"
OF_THE_MACHINE = {
    "/etc/resolv.conf": "/etc/resolv.conf",
    "/etc/hosts": "/etc/hosts",
    "/etc/ssl/certs/ca-certificates.crt": CERTIFICATES,
}
"""How the network is reached here, and where a root has it; a container has that from its engine."""
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")


@dataclass(slots=True)
class Stage:
    """A root that is being made, and what later steps find in it."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    directory: str = "/"
    user: str = "0:0"
    """User and group, by number."""

    def start(self, command: Sequence[str], **more: str) -> "subprocess.Popen[bytes]":
        """Start a command in it. Its processes end with it."""
        user, _, group = self.user.partition(":")
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", f"--root={self.root}",
                 f"--wd={self.directory}", f"--setgid={group}", f"--setuid={user}", *command]  # fmt: skip
        return subprocess.Popen(words, env={**self.environment, **more})

    def run(self, command: str, **more: str) -> None:
        """Run a RUN. Raises SystemExit if it fails."""
        if self.start(["/bin/sh", "-c", command], **more).wait() != 0:
            raise SystemExit(f"failed: {command}")

    def place(self, path: str) -> Path:
        """Where a path of the container is out here."""
        return self.root / os.path.normpath(os.path.join(self.directory, path)).lstrip("/")


@dataclass(slots=True)
class Build:
    """A build under way: the stages by name, the last one being the image."""

    directory: Path
    base: Path
    torch: Path | None
    stages: dict[str, Stage] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    image: dict[str, Instruction] = field(default_factory=dict)
    """What the image says of itself: the last ENTRYPOINT, CMD and so on."""

    @property
    def stage(self) -> Stage:
        """The stage that steps work on."""
        return list(self.stages.values())[-1]

    def play(self, step: Instruction) -> None:
        """Do what an instruction says."""
        print(f"container: {step.name} {step.text}", flush=True)
        match step.name:
            case "FROM":
                self._begin(step.words[2] if len(step.words) == 3 else "image")
            case "ARG":
                self.arguments |= step.pairs
            case "ENV":
                stage = self.stage
                stage.environment |= {name: expanded(value, stage.environment) for name, value in step.pairs.items()}
            case "WORKDIR":
                self.stage.directory = step.text
                self.stage.place(".").mkdir(parents=True, exist_ok=True)
            case "USER":
                self.stage.user = step.text
            case "COPY":
                self._copy(step)
            case "RUN":
                self.stage.run(step.text, **self.arguments, **of_the_network())
            case _:
                self.image[step.name] = step

    def _begin(self, name: str) -> None:
        root = self.directory / name
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["cp", "--archive", "--reflink=auto", str(self.base), str(root)], check=True)  # noqa: S607
        for here, there in OF_THE_MACHINE.items():
            if Path(here).is_file():
                (root / there.lstrip("/")).write_bytes(Path(here).read_bytes())
        self.stages[name] = Stage(root)

    def _copy(self, step: Instruction) -> None:
        *sources, last = step.words
        stage = self.stage
        target = stage.place(last)
        for source in sources:
            if "from" in step.options:
                origin = self.stages[step.options["from"]].root / source.lstrip("/")
            else:
                origin = ROOT / source
            if origin.is_dir():
                shutil.copytree(origin, target, symlinks=True, ignore=None if "from" in step.options else IGNORED)
            else:
                path = target / origin.name if last.endswith("/") else target
                path.write_bytes(origin.read_bytes())
                if self.torch is not None and origin == LOCK:
                    path.write_text(without_cuda(stage, self.torch), encoding="utf-8")


def without_cuda(stage: Stage, torch: Path) -> str:
    """The lock with a CPU build of torch, put into the root, in place of the locked one and what only that asks for."""
    shutil.copy(torch, stage.root / "tmp")
    digest = subprocess.run(["sha256sum", str(torch)], check=True, capture_output=True, text=True).stdout.split()[0]  # noqa: S607
    entries = [entry for entry in read_lock().values() if not entry.name.startswith((*OF_TORCH, "torch"))]
    return "\n".join([*map(str, entries), f"/tmp/{torch.name} --hash=sha256:{digest}"]) + "\n"  # noqa: S108


def of_the_network() -> dict[str, str]:
    """What tells pip and apt how the network is reached from here."""
    proxies = {name: value for name, value in os.environ.items() if name in ("http_proxy", "https_proxy")}
    return {"PIP_CERT": CERTIFICATES, **proxies} if Path(next(reversed(OF_THE_MACHINE))).is_file() else proxies


def make_base(directory: Path, release: str, mirror: str | None) -> Path:
    """A root of a release, as small as it gets; it is kept for the next time. Raises SystemExit."""
    base = directory / f"base-{release}"
    if not base.is_dir():
        program = shutil.which("debootstrap", path="/usr/sbin:/usr/bin")
        if program is None or os.geteuid() != 0:
            raise SystemExit("this needs root, and Debian's package debootstrap")
        work = directory / f"base-{release}.part"
        subprocess.run([program, "--variant=minbase", release, str(work), *([mirror] if mirror else [])], check=True)
        work.rename(base)
    return base


def try_server(build: Build) -> None:
    """Start what the image starts, wait for its health, ask, and end it. Raises SystemExit."""
    stage, image = build.stage, build.image
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [port if word == "8000" else word for word in image["CMD"].command]
    health = [word.replace("8000", port) for word in image["HEALTHCHECK"].command]
    server = stage.start([*image["ENTRYPOINT"].command, *command], HEADRACE_API_KEY=KEY)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while stage.start(["/bin/sh", "-c", '"$@" 2>/dev/null', "health", *health]).wait() != 0:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not become healthy")
            time.sleep(2)
        print(f"container: healthy; it answers: {ask(port)!r}", flush=True)
        end(server)
    finally:
        server.kill()


def ask(port: str) -> str:
    """What the default model says to a question."""
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 16}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
        return str(json.load(answer)["choices"][0]["message"]["content"])


def end(server: "subprocess.Popen[bytes]") -> None:
    """Send SIGTERM to tini, the only child of `unshare`, as `docker stop` would. Raises SystemExit."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="utf-8").split()
    os.kill(int(children[0]), signal.SIGTERM)
    code = server.wait(END_SECONDS)
    if code != 0:
        raise SystemExit(f"the server ended with exit code {code}")
    print("container: ended with exit code 0 after SIGTERM", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and try; the exit code."""
    parser = argparse.ArgumentParser(description="Play Dockerfile.cuda without Docker.")
    parser.add_argument("directory", type=Path, help="where the roots are made")
    parser.add_argument("--torch", type=Path, metavar="FILE.whl", help="a CPU build of torch, in its place")
    parser.add_argument("--base", default="bookworm", help="release that stands for the image's base [%(default)s]")
    parser.add_argument("--mirror", metavar="URL", help="where it comes from [debootstrap's own]")
    parser.add_argument("--keep", action="store_true", help="leave the roots there")
    options = parser.parse_args(arguments)
    directory: Path = options.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    build = Build(directory, make_base(directory, options.base, options.mirror), options.torch)
    try:
        for step in parse_dockerfile((ROOT / "Dockerfile.cuda").read_text(encoding="utf-8")):
            build.play(step)
        try_server(build)
    finally:
        if not options.keep:
            for stage in build.stages.values():
                shutil.rmtree(stage.root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
