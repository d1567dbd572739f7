"""Random models: any architecture at its own or a given size, for tests and benchmarks without a download.

    random://Llama-3.1-8B                        by the shipped facts of architectures/Llama-3.1-8B.json
    random://llama?hidden_size=64&vocab_size=300 by a model type of transformers, its defaults changed
    random:///path/to/config.json                by a configuration on disk (or the directory that holds it)
    random://Qwen2.5-VL-7B?text_config.num_hidden_layers=2    a part's fields behind a point

The directory made for one holds config.json and a tokenizer whose every id has a text, but no weights: the loader
draws those on the device, from `seed` (default 0).
"""

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from engine.cache import cache_dir
from engine.errors import ModelLoadError
from engine.weights.random_sight import RandomSight, sight_of
from engine.weights.random_tokenizer import TOKENIZER_FILES, write_processing, write_tokenizer
from engine.weights.seeing import PROCESSING_FILES, says_how

SEED_FILE = "random_seed"
_FORMAT_VERSION = 3
_ARCHITECTURES = Path(__file__).parent / "architectures"


def architecture_names() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in _ARCHITECTURES.glob("*.json"))


def random_model_dir(spec: str) -> Path:
    """Directory for `NAME?key=value&...`, made on the first call. Raises `ModelLoadError`."""
    name, options = _parsed(spec)
    seed = options.pop("seed", 0)
    if not isinstance(seed, int) or seed < 0:
        raise ModelLoadError(f"seed must be a whole number that is not negative, got {seed!r}")
    base, config = _based_on(name)
    config = _config_of_type(name, options) if config is None else _overridden(config, options)
    tokenizer_dir = (base if base.is_dir() else base.parent) if base else None
    return _write(config, seed, tokenizer_dir)


def told_fields(spec: str) -> dict[str, Any]:
    """What `NAME?key=value&...` itself tells of its configuration, which transformers is not asked about.

    So there may be fields that do not exist, and the defaults of a model type are not there. Raises `ModelLoadError`.
    """
    name, options = _parsed(spec)
    _, config = _based_on(name)
    return _merged({"model_type": name} if config is None else config, options)


def _parsed(spec: str) -> tuple[str, dict[str, Any]]:
    name, _, query = spec.partition("?")
    return name, {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)}


def _based_on(name: str) -> tuple[Path | None, dict[str, Any] | None]:
    """The file or directory that is named, and the configuration there, or else one that is shipped."""
    base = Path(name).expanduser() if name.startswith(("/", "~", ".")) else None
    return base, _read_config(base) if base else shipped_config(name)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if "model_type" not in config:
            raise ValueError("it names no model_type")
    except (OSError, ValueError, TypeError) as error:
        raise ModelLoadError(f"random://{path}: {file.name} cannot be read: {error}") from error
    return dict(config)


def shipped_config(name: str) -> dict[str, Any] | None:
    """Facts by name; a hub id counts by its last part, in any case, and `-Instruct` and `-it` do not matter."""
    wanted = _plain(name)
    for path in _ARCHITECTURES.glob("*.json"):
        if _plain(path.stem) == wanted:
            return dict(json.loads(path.read_text(encoding="utf-8")))
    return None


def _plain(name: str) -> str:
    return name.rpartition("/")[2].lower().removesuffix("-instruct").removesuffix("-it").removeprefix("meta-")


def _overridden(config: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The configuration with fields changed; only fields that exist, since a misspelt one would go unnoticed."""
    _check_keys(options, [config, _defaults(config["model_type"])], config["model_type"])
    config = _merged(config, options)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(kinds := part.get("layer_types"), list):
            part["layer_types"] = kinds[: part["num_hidden_layers"]]
    return config


def _merged(config: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """A configuration with fields changed; behind a point stand those of a part of it."""
    merged = dict(config)
    for key, value in options.items():
        part, _, rest = key.partition(".")
        inner = merged.get(part)
        merged[part] = _merged(inner if isinstance(inner, dict) else {}, {rest: value}) if rest else value
    return merged


def _config_of_type(model_type: str, options: dict[str, Any]) -> dict[str, Any]:
    _check_keys(options, [_defaults(model_type)], model_type)
    return _merged({"model_type": model_type, "dtype": "bfloat16"}, options)


def _defaults(model_type: str) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(model_type)
    except (ValueError, KeyError):
        raise ModelLoadError(
            f"random://{model_type}: there is no such architecture",
            hint=f"Give a model type of transformers, such as llama, or one of {', '.join(architecture_names())}.",
        ) from None
    return dict(config.to_dict())


def _check_keys(options: dict[str, Any], known: list[dict[str, Any]], model_type: str) -> None:
    """Raise ModelLoadError for a field that none of the known configurations has."""
    for key in options:
        found: list[Any] = list(known)
        for part in key.split("."):
            found = [fields[part] for fields in found if isinstance(fields, dict) and part in fields]
        if not found:
            raise ModelLoadError(f"random://{model_type}: {key!r} is not a field of its configuration")


def _write(config: dict[str, Any], seed: int, tokenizer_dir: Path | None) -> Path:
    text = json.dumps(config, sort_keys=True)
    digest = hashlib.sha256(f"{_FORMAT_VERSION}\0{text}\0{seed}\0{tokenizer_dir}".encode()).hexdigest()[:32]
    target = cache_dir() / "random" / digest
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f"{digest}.", dir=target.parent))
        try:
            (work / SEED_FILE).write_text(str(seed), encoding="utf-8")
            (work / "config.json").write_text(text, encoding="utf-8")
            _put_tokenizer(work, config, tokenizer_dir)
            _move(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelLoadError(f"cannot write to the cache: {error.strerror or error}") from error
    return target


def _put_tokenizer(directory: Path, config: dict[str, Any], tokenizer_dir: Path | None) -> None:
    own = [tokenizer_dir / name for name in (*TOKENIZER_FILES, *PROCESSING_FILES)] if tokenizer_dir else []
    if own and own[0].is_file():
        for path in own:
            if path.is_file():
                shutil.copy(path, directory)
        if (sight := _sight_of(config)) is not None and not says_how(directory):
            write_processing(directory, sight)
    else:
        write_tokenizer(directory, _vocab_size(config), _eos_token_id(config), _sight_of(config))


def _sight_of(config: dict[str, Any]) -> RandomSight | None:
    if "vision_config" not in config and "vision_config" not in _defaults(config["model_type"]):
        return None
    from transformers import AutoConfig

    return sight_of(AutoConfig.for_model(**config).to_dict())


def _move(work: Path, target: Path) -> None:
    """Give a directory its name, unless another process was first, with the same content."""
    try:
        os.replace(work, target)
    except OSError:
        if not target.is_dir():
            raise


def _text_field(config: dict[str, Any], key: str) -> Any:
    """Of the configuration, or its part for text; else of what its type has by default."""
    value = _said(config, key)
    return value if value is not None else _said(_defaults(config["model_type"]), key)


def _said(config: dict[str, Any], key: str) -> Any:
    text = config.get("text_config")
    value = config.get(key)
    return text.get(key) if value is None and isinstance(text, dict) else value


def _vocab_size(config: dict[str, Any]) -> int:
    size = _text_field(config, "vocab_size")
    if not isinstance(size, int) or size < 1:
        raise ModelLoadError(f"vocab_size must be a positive number, got {size!r}")
    return size


def _eos_token_id(config: dict[str, Any]) -> int | None:
    ids = _text_field(config, "eos_token_id")
    first = ids[0] if isinstance(ids, list) and ids else ids
    return first if isinstance(first, int) else None
