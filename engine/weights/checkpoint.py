"""What a directory of weights must hold: a configuration and complete safetensors, never pickles."""

import json
from pathlib import Path
from typing import Any

from engine.errors import ModelLoadError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_config(directory: Path) -> dict[str, Any] | None:
    """The config.json of a directory; None where there is none that can be read."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def check_directory(directory: Path, name: str) -> None:
    """Raise `ModelLoadError` unless a directory holds a configuration and complete safetensors."""
    if not (directory / "config.json").is_file():
        raise ModelLoadError(
            f"{name} has no config.json", hint="A model directory holds config.json, safetensors and a tokenizer."
        )
    missing = missing_weights(directory)
    if not missing:
        return
    if any(next(directory.glob(pattern), None) for pattern in _PICKLES) and not any(directory.glob("*.safetensors")):
        raise ModelLoadError(
            f"{name} has its weights only as pickle files, which can run code when they are read",
            hint="Convert them to safetensors, or use a repository that has them.",
        )
    raise ModelLoadError(f"{name} lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))


def missing_weights(directory: Path) -> list[str]:
    """Names of the weight files that a directory should have and has not."""
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").is_file():
        return []
    if not index.is_file():
        return ["model.safetensors"]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return [f"a readable {index.name}"]
    return sorted(name for name in names if not (directory / name).is_file())


def weight_files(directory: Path) -> list[Path]:
    """The files that the model would be loaded from."""
    whole = directory / "model.safetensors"
    return [whole] if whole.is_file() else sorted(directory.glob("model*.safetensors"))


def weights_size(directory: Path) -> int:
    """Bytes of the weight files that the model would be loaded from."""
    return sum(path.stat().st_size for path in weight_files(directory))
