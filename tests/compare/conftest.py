"""What tests of several parts of a comparison need."""

import os

import pytest

from vllm_kprune.compare.suites.answer_checks import Checks


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests kill processes, never the machine: what was written needs not be on the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="session")
def checks() -> Checks:
    """The checks with their language identification, or a skip where it is not installed."""
    pytest.importorskip("py3langid", reason="names languages; pip install 'vllm-kprune[compare]'")
    from vllm_kprune.compare.suites.language_id import language_identifier

    return Checks(language_identifier())
