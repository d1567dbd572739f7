"""Starting the scripted engine and a real server in front of it."""

import sys

import msgspec
import pytest

from engine.config import EngineConfig
from tests.server.fake_engine import SCRIPT_VARIABLE, Script

FAKE_COMMAND = (sys.executable, "-m", "tests.server.fake_engine")

__all__ = ["FAKE_COMMAND", "Script", "engine_config", "set_script"]


def engine_config(name: str = "fake") -> EngineConfig:
    """A configuration the scripted engine reads nothing of but the name."""
    return EngineConfig(name=name, source="fake://")


def set_script(monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
    """Hand the script to engine processes started from now on."""
    monkeypatch.setenv(SCRIPT_VARIABLE, msgspec.json.encode(script).decode())
