from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic_measurements import BYTES, SCORE, SHARE, SPEED, TAIL, measured

from vllm_kprune.compare.measurements import Metric
from vllm_kprune.compare.statistics.comparison import Comparison, Estimate, compare, correct
from vllm_kprune.compare.statistics.number_format import show_effect, show_margin, show_value
from vllm_kprune.compare.statistics.verdicts import Judgement, Verdict, judge, judge_suite, overall


def found(
    metric: Metric, value: float, low: float, high: float, p: float = 1.0, n: int = 100
) -> Comparison:
    side = Estimate(0.5, 0.4, 0.6)
    effect = Estimate(value, low, high)
    return Comparison(metric, n, n, 0, n // 2, 0.95, side, side, effect, p, p)


EQUAL = found(SHARE, 0.001, -0.004, 0.006)
ALONE = "not enough data: worse, but not after correction (about 110 items needed)"
OPEN = found(SHARE, 0.001, -0.04, 0.04)


@pytest.mark.parametrize(
    "comparison, words",
    [
        (EQUAL, "equal within 1 pp"),
        (replace(EQUAL, p_adjusted=0.001), "equal within 1 pp"),
        (found(SHARE, 0.05, 0.02, 0.08, p=0.001), "better"),
        (found(SHARE, -0.05, -0.08, -0.02, p=0.001), "worse"),
        (found(SHARE, -0.05, -0.08, -0.02, p=0.06), ALONE),
        (found(replace(SHARE, better="lower"), -0.05, -0.08, -0.02, p=0.001), "better"),
        (found(SPEED, 1.4, 1.3, 1.5, p=0.001), "better"),
        (found(SPEED, 0.8, 0.7, 0.9, p=0.001), "worse"),
        (found(SPEED, 1.0, 0.99, 1.01), "equal within 2 %"),
        (found(SCORE, 0.1, -0.3, 0.4), "equal within 0.5 points"),
        (found(replace(SHARE, better="neither"), 0.5, 0.4, 0.6), "informational"),
        (replace(EQUAL, pruned=None), "informational"),
        (replace(EQUAL, n=5), "not enough data (about 6 items needed)"),
        (replace(EQUAL, effect=Estimate(None, None, None)), "not enough data"),
    ],
)
def test_verdicts_in_words(comparison: Comparison, words: str) -> None:
    assert judge(comparison).words == words


def test_not_enough_data_names_the_option_that_helps() -> None:
    few = compare(measured(SHARE, [1] * 50, [1] * 50), seed=1)
    words = judge(few, "--benchmark FOLDER").words
    assert words == "not enough data (about 300 items needed: --benchmark FOLDER)"


def test_what_is_counted_needs_no_test() -> None:
    for after, verdict in ((0.9e9, "better"), (1.2e9, "worse"), (1.001e9, "equal")):
        comparison = compare(measured(BYTES, [1e9], [after]), seed=1)
        assert judge(comparison).verdict == verdict


def test_about_as_many_items_as_are_said_to_be_needed_settle_it() -> None:
    """Equal sides, 4 % of answers differing: more items until the verdict is equal."""
    few = compare(measured(SHARE, *differing(300)), seed=1, resamples=1000)
    needed = judge(few).items_needed
    assert needed is not None and 600 < needed < 6000
    enough = compare(measured(SHARE, *differing(2 * needed)), seed=1, resamples=1000)
    assert judge(enough).verdict == "equal"


def differing(items: int) -> tuple[list[int], list[int]]:
    """Of 50 answers, one is right only on the original side, and one only on the pruned side."""
    return [item % 50 != 0 for item in range(items)], [item % 50 != 25 for item in range(items)]


def test_items_that_are_all_alike_settle_it_when_there_are_enough() -> None:
    few = compare(measured(SHARE, [1] * 50, [1] * 50), seed=1)
    needed = judge(few).items_needed
    assert needed is not None and 290 < needed < 310  # 3 / 300 = 1 %, the margin
    enough = compare(measured(SHARE, [1] * 2 * needed, [1] * 2 * needed), seed=1, resamples=1000)
    assert judge(enough).verdict == "equal"


def test_a_tail_quantile_of_few_values_is_not_guessed() -> None:
    values = [float(one) for one in range(100, 140)]
    (comparison,) = correct([compare(measured(TAIL, values, values), seed=1)])
    assert comparison.effect.value == 1
    assert comparison.effect.low is None and comparison.p is None
    assert judge(comparison).words == "not enough data (about 72 items needed)"


def one(verdict: Verdict) -> Judgement:
    return Judgement(verdict, verdict)


@pytest.mark.parametrize(
    "verdicts, expected, words",
    [
        (["worse", "better", "equal"], "worse", "worse in 1 (a), better in 1, equal in 1 of 3"),
        (["equal", "better", "equal"], "better", "better in 1, equal in 2 of 3 metrics"),
        (["equal", "not enough data"], "not enough data", "not enough data in 1, equal in 1 of 2"),
        (["equal", "informational", "equal"], "equal", "equal in 2 of 2 metrics"),
        (["informational", "informational"], "informational", "informational"),
        ([], "informational", "not measured"),
        (["informational", "worse"], "worse", "worse"),
    ],
)
def test_verdicts_of_a_suite(verdicts: list[Verdict], expected: str, words: str) -> None:
    suite = judge_suite([(title, one(each)) for title, each in zip("abc", verdicts, strict=False)])
    assert suite.verdict == expected
    assert suite.words.startswith(words)


def test_long_titles_are_left_out_of_a_suites_verdict() -> None:
    suite = judge_suite([("x" * 60, one("worse")), ("y" * 60, one("worse")), ("z", one("equal"))])
    assert suite.words == "worse in 2, equal in 1 of 3 metrics"


def test_a_report_in_one_sentence_names_what_is_worse_first() -> None:
    suites: list[tuple[str, Verdict]] = [
        ("memory", "better"),
        ("accuracy", "equal"),
        ("stability", "worse"),
        ("exactness", "informational"),
    ]
    judged = "worse: stability; better: memory; equal: accuracy; informational: exactness"
    assert overall(suites) == judged
    missing = overall(suites, unmeasured=["input", "latency"], incomplete="the server died")
    assert missing == f"incomplete: the server died; {judged}; not measured: input, latency"
    assert overall([]) == "nothing was judged"
    assert overall(suites[-1:]) == "nothing was judged; informational: exactness"


@pytest.mark.parametrize(
    "value, unit, text",
    [
        (0.9731, "share", "97.3 %"),
        (268_100_000.0, "bytes", "268 MB"),
        (3_087_000_000.0, "bytes", "3.09 GB"),
        (12.0, "bytes", "12.0 B"),
        (1234.5, "ms", "1,234 ms"),
        (0.0123, "ms", "0.0123 ms"),
        (27.84, "points", "27.8"),
        (0.0, "tokens", "0 tokens"),
        (None, "ms", "–"),
    ],
)
def test_figures_as_text(value: float | None, unit: str, text: str) -> None:
    assert show_value(value, unit) == text


@pytest.mark.parametrize(
    "metric, effect, text",
    [
        (SHARE, (-0.0124, -0.0213, -0.0031), "−1.2 pp [−2.1, −0.3]"),
        (SHARE, (0.0, -0.01, 0.01), "0.0 pp [−1.0, +1.0]"),
        (SPEED, (1.423, 1.39, 1.461), "×1.42 [1.39, 1.46]"),
        (SCORE, (0.031, -0.11, 0.2), "+0.03 points [−0.11, +0.20]"),
        (replace(BYTES, effect="difference"), (-5.1e8, -5.1e8, -5.1e8), "−510 MB"),
        (SHARE, (0.2, None, None), "+20.0 pp"),
        (SHARE, (None, None, None), "–"),
    ],
)
def test_effects_as_text(metric: Metric, effect: tuple[float | None, ...], text: str) -> None:
    assert show_effect(Estimate(*effect), metric) == text


def test_a_figure_of_the_pair_is_shown_as_a_figure() -> None:
    assert show_effect(Estimate(0.955, 0.92, 0.98), SHARE, of_pair=True) == "95.5 % [92.0, 98.0]"


def test_margins_as_text() -> None:
    assert [show_margin(metric) for metric in (SHARE, SPEED, SCORE)] == [
        "1 pp",
        "2 %",
        "0.5 points",
    ]


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["share", "ms", "bytes"]))
def test_any_figure_can_be_shown(value: float, unit: str) -> None:
    assert show_value(value, unit)
    show_effect(Estimate(value, value, value), replace(SHARE, unit=unit))
