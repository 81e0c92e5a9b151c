"""Two servers started for a comparison: amounts by suite, and resuming on other ports."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.mock_answers import Habits
from support.mock_endpoint import MockEndpoint

from vllm_kprune.compare.connect import connect
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.demo import served
from vllm_kprune.demo.served import check_kept, compare_served
from vllm_kprune.errors import KPruneError

AMOUNTS = {"stability": {"limit": 8, "max_tokens": 40}, "exactness": {"limit": 6}}
OPTIONS = CommonOptions(concurrency=2)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry a dead server without waiting."""
    monkeypatch.setattr(served, "connect", partial(connect, first_wait=0.001))


@contextmanager
def pair(**habits: Any) -> Iterator[tuple[MockEndpoint, MockEndpoint]]:
    """Two new endpoints on new ports; the pruned one has these habits."""
    with MockEndpoint(Habits("original")) as one, MockEndpoint(Habits("pruned", **habits)) as two:
        yield one, two


def compared(mocks: tuple[MockEndpoint, MockEndpoint], folder: Path) -> Any:
    servers: Any = tuple(SimpleNamespace(base_url=f"{mock.url}/v1") for mock in mocks)
    return compare_served(servers, AMOUNTS, OPTIONS, folder, timeout=20)


def test_each_suite_has_its_own_amount_and_the_report_tells_them(tmp_path: Path) -> None:
    with pair() as mocks:
        report = compared(mocks, tmp_path)
    items = {suite.name: suite.metrics[0].items for suite in report.suites}
    assert items == {"stability": 8, "exactness": 6}
    settings = report.settings
    assert (settings["stability.limit"], settings["exactness.limit"]) == (8, 6)
    assert settings["stability.max_tokens"] == 40
    # What did not hold for every suite is not told as if it had.
    assert not {"limit", "max_tokens", "amounts"} & settings.keys()
    assert [endpoint.url for endpoint in report.endpoints] == [
        "http://original/v1",
        "http://pruned/v1",
    ]


def test_after_a_restart_on_other_ports_nothing_is_asked_again(tmp_path: Path) -> None:
    with pair() as mocks:
        first = compared(mocks, tmp_path)
    with pair() as mocks:
        second = compared(mocks, tmp_path)
        assert mocks[0].asked == mocks[1].asked == []
    assert second == first


def test_other_settings_are_found_before_servers_start(tmp_path: Path) -> None:
    with pair() as mocks:
        compared(mocks, tmp_path)
    check_kept(OPTIONS, AMOUNTS, tmp_path)
    with pytest.raises(KPruneError, match="seed was 0, now 1"):
        check_kept(replace(OPTIONS, seed=1), AMOUNTS, tmp_path)


@pytest.mark.slow
def test_a_server_that_dies_is_told_and_the_next_call_goes_on(tmp_path: Path) -> None:
    with pair() as mocks:
        unbroken = compared(mocks, tmp_path / "unbroken")
    with pair(dies_after=20) as mocks, pytest.raises(KPruneError, match="the same command resumes"):
        compared(mocks, tmp_path / "broken")
    with pair() as mocks:
        assert compared(mocks, tmp_path / "broken") == unbroken
