"""What a build adds to the packages that pyproject.toml describes: the commit it was made from, and models.yaml.

The commit is `HEADRACE_COMMIT` where that is set, as the container does, which has no `.git`; else what this tree says.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from server.commit import WRITTEN, known_commit  # noqa: E402 (needs nothing but Python)

MODELS_FILE = Path("server/config/models.yaml")
"""Where an installed server finds the models that ship."""


def write_commit(tree: Path) -> None:
    """Say in a tree that is being made which commit it comes from."""
    target = tree / WRITTEN.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # it may be a hard link to a file of the source
    commit = os.environ.get("HEADRACE_COMMIT", "").strip() or known_commit() or ""
    target.write_text(commit + "\n", encoding="utf-8")


class BuildWithCommit(build_py):
    """`build_py`, with both files; an editable installation has them in its checkout."""

    def run(self) -> None:
        """Build, then add them."""
        super().run()
        if not self.editable_mode:
            write_commit(Path(self.build_lib))
            shutil.copyfile(ROOT / "models.yaml", Path(self.build_lib) / MODELS_FILE)


class SdistWithCommit(sdist):
    """`sdist`, with the commit, which no git can tell there."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Make the tree, then add it."""
        super().make_release_tree(base_dir, files)
        write_commit(Path(base_dir))


setup(cmdclass={"build_py": BuildWithCommit, "sdist": SdistWithCommit})
