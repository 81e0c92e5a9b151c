"""The project's Markdown files, and the scripts that make some of them."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def make_reference() -> ModuleType:
    """`packaging/make_reference.py`, which is no part of the package."""
    sys.path.insert(0, str(ROOT / "packaging"))
    try:
        import make_reference
    finally:
        sys.path.remove(str(ROOT / "packaging"))
    return make_reference
