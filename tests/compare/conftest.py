"""Fixtures that several tests of the comparison need."""

import os

import pytest
from support.browser import browser

from vllm_kprune.compare.suites.answer_checks import Checks

__all__ = ["browser"]


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests kill processes but never the machine, so that nothing needs to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="session")
def checks() -> Checks:
    """The checks with language identification; skips the test if that is not installed."""
    pytest.importorskip("py3langid", reason="names languages; pip install 'vllm-kprune[compare]'")
    from vllm_kprune.vocabulary.language_id import language_identifier

    return Checks(language_identifier())
