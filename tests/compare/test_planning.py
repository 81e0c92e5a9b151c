"""`--plan`: what a run would take, and what it could find."""

from pathlib import Path

import pytest
from support.mock_endpoint import MockEndpoint

from vllm_kprune.cli import main
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.planning import Speed, finds
from vllm_kprune.compare.run import Amount
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.compare.suites.parallel_text import own_sentences
from vllm_kprune.compare.suites.stability_prompts import stability_prompts


def test_the_default_sizes_can_show_that_sides_are_equal() -> None:
    amount = SUITES["stability"].amount(CommonOptions())
    assert amount is not None and amount.items >= 300 and amount.requests == 2 * amount.items
    # The narrowest margin of the suite is 1 pp.
    assert finds(amount).endswith("equal within 0.9 pp")
    sentences = SUITES["translation"].amount(CommonOptions())
    assert sentences is not None and sentences.items == 2 * len(own_sentences()) >= 400


def test_a_limit_and_the_options_of_a_suite_are_planned_for() -> None:
    few = CommonOptions(limit=10)
    amounts = {name: suite.amount(few) for name, suite in SUITES.items()}
    assert {name: one.items for name, one in amounts.items() if one} == {
        "stability": 10, "translation": 20, "exactness": 10, "latency": 10, "memory": 1,
    }  # fmt: skip
    assert amounts["accuracy"] is None
    assert len(stability_prompts(("ko", "en"), None)) > 10


def test_more_items_find_less() -> None:
    def share(items: int) -> str:
        return finds(Amount(items, items, measure="share"))

    assert share(100).startswith("finds 10.0 pp; ")
    assert share(1000).startswith("finds 1.0 pp; ")


def test_requests_that_run_alone_take_longer_than_those_among_others() -> None:
    speed = Speed(alone=6.0, together=4.0, among=1.0, tokens=60.0)
    assert speed.minutes(Amount(60, 60)) == 1.0
    assert speed.minutes(Amount(60, 60, alone=60)) == 6.0
    assert speed.minutes(Amount(60, 60, together=60)) == 4.0
    # 10 of 70 alone, each half as long, and a minute of waiting.
    assert speed.minutes(Amount(10, 70, 30, alone=10, pause_seconds=60)) == 2.0
    exactness, latency = (SUITES[name].amount(CommonOptions()) for name in ("exactness", "latency"))
    assert exactness and exactness.together == exactness.requests == 60
    assert latency and (latency.alone, latency.requests) == (10, 90)


def test_a_plan_is_printed_and_nothing_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with MockEndpoint() as original, MockEndpoint() as pruned:
        sides = "--original", original.url, "--pruned", pruned.url
        with pytest.raises(SystemExit) as stopped:
            main(["compare", *sides, "--plan", "-o", str(tmp_path / "run")])
        asked = len(original.asked)
    assert not stopped.value.code
    out = capsys.readouterr().out
    assert "stability" in out and "324" in out and "648" in out
    assert "depends on its" in out
    assert "minutes, measured with a few prompts" in out
    assert asked < 40
    assert not (tmp_path / "run").exists()
