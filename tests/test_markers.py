"""Markers tell what a test costs: `make test-fast` leaves out servers and what takes long."""

import re
from pathlib import Path

import pytest
from support.run_limits import MARKED_BY, MAX_MEMORY_MB, peak_memory_mb, too_much_memory

HERE = Path(__file__).parent
# In the test itself, or in a script that it runs in another process.
STARTS_A_SERVER = re.compile(r'\bVllmServer\(|"offline_jobs\.py"|\bLLM\(')
STANDS_IN = HERE / "demo" / "test_servers.py"  # its servers are a few lines of Python


def test_files_that_start_servers_have_the_marker() -> None:
    sources = {
        path: path.read_text(encoding="utf-8")
        for path in HERE.rglob("test_*.py")
        if path not in (STANDS_IN, Path(__file__))
    }
    starting = {path for path, text in sources.items() if STARTS_A_SERVER.search(text)}
    assert len(starting) >= 6
    assert [path for path in starting if "pytest.mark.server" not in sources[path]] == []


def test_tests_that_use_a_costly_fixture_have_its_marker(request: pytest.FixtureRequest) -> None:
    unmarked = [
        (item.nodeid, marker)
        for item in request.session.items
        for fixture, marker in MARKED_BY.items()
        if fixture in getattr(item, "fixturenames", ()) and not item.get_closest_marker(marker)
    ]
    assert unmarked == []


def test_a_process_that_takes_too_much_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 20 < peak_memory_mb() < 100_000
    monkeypatch.setattr("support.run_limits.peak_memory_mb", lambda: MAX_MEMORY_MB)
    assert too_much_memory() is None
    monkeypatch.setattr("support.run_limits.peak_memory_mb", lambda: MAX_MEMORY_MB + 1)
    assert too_much_memory()
    assert "2049 MB, at most 2048 MB" in str(too_much_memory())
