"""Models of the Hugging Face hub: found in its local cache, or downloaded into it.

Only safetensors, JSON and templates are fetched: no pickles, no code.
"""

import logging
from pathlib import Path
from typing import Any

from engine.cache import Progress
from engine.errors import ModelLoadError
from engine.weights.checkpoint import missing_weights

logger = logging.getLogger(__name__)

_WANTED = ["*.safetensors", "*.json", "*.jinja"]
_UNWANTED = ["*/*", "consolidated*"]
"""Whatever lies in folders (other formats of the same weights), and the second copy that some repositories hold."""


def cached_snapshot(repo: str, revision: str | None) -> Path | None:
    """The complete snapshot of a repository in the local cache, or None. No network."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--"))
    reference = folder / "refs" / (revision or "main")
    try:
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    except OSError:
        return None
    snapshot = folder / "snapshots" / (commit or "")
    complete = (snapshot / "config.json").is_file() and not missing_weights(snapshot)
    return snapshot if commit and complete else None


def download(repo: str, revision: str | None, progress: Progress) -> Path:
    """Fetch a repository into the hub's cache, resuming what is there. Raises `ModelLoadError` with a hint."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    stage = f"downloading {repo}"
    progress(stage, None)
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": _WANTED, "ignore_patterns": _UNWANTED}
    try:
        size = _missing_bytes(repo, wanted)
        return Path(snapshot_download(repo, **wanted, tqdm_class=_reporter(stage, progress, size)))
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{repo} is gated: its licence must be accepted on its page on the hub",
            hint="Accept it there, then set HF_TOKEN to a token of that account.",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"the hub does not have {repo}, or it is private",
            hint="Check the spelling; for a private model set HF_TOKEN.",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{repo} has no revision {revision!r} on the hub") from error
    except Exception as error:  # no route, a proxy, a timeout, a full disk: each layer below has its own kinds
        logger.debug("downloading %s failed", repo, exc_info=True)
        raise ModelLoadError(
            f"{repo} is not in the hub's local cache and could not be downloaded",
            hint="Check the network and the space on disk, or give a local directory or a .gguf file as the source. "
            "The default model needs no hub.",
        ) from error


def _missing_bytes(repo: str, wanted: dict[str, Any]) -> int:
    """What is to be downloaded; 0 where the hub's client does not tell. Raises as the download does."""
    from huggingface_hub import snapshot_download

    try:
        files: Any = snapshot_download(repo, **wanted, dry_run=True)
    except TypeError:  # an older client cannot be asked
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)


def _reporter(stage: str, progress: Progress, size: int) -> type[Any]:
    """A tqdm class that tells `progress` how many of `size` bytes have come, and shows nothing.

    The hub's client has several bars, whose totals grow as it begins with files.
    """
    from tqdm.auto import tqdm

    furthest = 0.0

    class Reporter(tqdm):  # type: ignore[misc]
        """Takes part in the hub's download as its progress bar."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            kwargs.pop("name", None)
            super().__init__(*args, **(kwargs | {"disable": True}))
            self._done = 0.0

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal furthest
            self._done += n or 0
            if self._counts_bytes and size and self._done > furthest:
                furthest = self._done
                progress(stage, min(1.0, furthest / size))
            return None

    return Reporter
