"""Where the repository is, and what may lie beside it."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
"""Real tokenizers, templates and schemas; the tests that need them are skipped without it, and say so."""
