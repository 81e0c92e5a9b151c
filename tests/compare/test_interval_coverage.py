"""How often intervals hold the truth, and how often equal sides are called different: simulated.

Fixed seeds, few runs: the bounds leave room for chance (400 runs of a true 95 % fall below 0.92 in
one of 300 cases).
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from support.synthetic_measurements import (
    LCPR,
    LPR,
    MEDIAN,
    SCORE,
    SHARE,
    SPEED,
    TAIL,
    Floats,
    latencies,
    measured,
    paired_shares,
    passes,
)

from vllm_kprune.compare.measurements import Metric, SuiteResult
from vllm_kprune.compare.statistics.comparison import compare, correct
from vllm_kprune.compare.statistics.intervals import intervals
from vllm_kprune.compare.statistics.pairing import pair
from vllm_kprune.compare.statistics.verdicts import judge

pytestmark = pytest.mark.slow

RUNS = 300
Pair = tuple[Floats, Floats]
FASTER = 1.2


def rare_leaks(rng: np.random.Generator, items: int) -> Pair:
    return np.zeros(items), (rng.random(items) < 0.02).astype(float)


def few_other_answers(rng: np.random.Generator, items: int) -> Pair:
    original = (rng.random(items) < 0.6).astype(float)
    return original, np.where(rng.random(items) < 0.05, 1 - original, original)


def pass_rates(rng: np.random.Generator, items: int) -> Pair:
    return passes(rng, items, 4, 0.93), passes(rng, items, 4, 0.98)


def rates_of_two_languages(rng: np.random.Generator, items: int) -> Pair:
    """One answer to each prompt; a third of the prompts is in the second language."""
    first = np.arange(items)[:, None] % 3 > 0
    sides = (passes(rng, items, 1, share) for share in (0.9, 0.8))
    original, pruned = (np.hstack([side * first, side * ~first]) for side in sides)
    return original, pruned


def scores(rng: np.random.Generator, items: int) -> Pair:
    original = rng.normal(30, 5, items)
    return original, original + rng.normal(0.3, 1, items)


def times(rng: np.random.Generator, items: int) -> Pair:
    return latencies(rng, items, FASTER)


@pytest.mark.parametrize(
    "make, metric, items, truth",
    [
        (rare_leaks, SHARE, 60, 0.02),
        (rare_leaks, SHARE, 200, 0.02),
        (few_other_answers, SHARE, 60, 0.05 * (0.4 - 0.6)),
        (few_other_answers, SHARE, 200, 0.05 * (0.4 - 0.6)),
        (pass_rates, LPR, 60, 0.05),
        (rates_of_two_languages, replace(LPR, aggregate="macro_ratio"), 60, -0.1),
        (scores, SCORE, 10, 0.3),
        (scores, SCORE, 60, 0.3),
        (times, replace(SPEED, better="lower"), 20, FASTER),
        (times, MEDIAN, 60, FASTER),
        (times, TAIL, 100, FASTER),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    make: Callable[[np.random.Generator, int], Pair], metric: Metric, items: int, truth: float
) -> None:
    rng = np.random.default_rng(17)
    held = 0
    goal = np.log(truth) if metric.effect == "ratio" else truth
    for _ in range(RUNS):
        low, high = intervals(pair(measured(metric, *make(rng, items))), 200, 0.95, rng)[-1]
        held += low <= goal <= high
    # Rare differences all on one side: a plain interval holds the truth in 89 % of cases.
    assert held / RUNS >= (0.95 if make is rare_leaks else 0.91)


@pytest.mark.parametrize("items", [60, 300])
@pytest.mark.parametrize("expected", [0.5, 2.9, 3.1, 4.0, 6.0])
def test_a_difference_of_which_a_few_items_or_none_are_seen_is_held(
    items: int, expected: float
) -> None:
    """The worst case for the interval of no difference: all of it is on one side."""
    rng = np.random.default_rng(5)
    share, held, sure = expected / items, 0, 0
    for _ in range(RUNS):
        leaks = (rng.random(items) < share).astype(float)
        ends = intervals(pair(measured(SHARE, np.zeros(items), leaks)), 100, 0.95, rng)[-1]
        held += ends[0] <= share <= ends[1]
        sure += -share < ends[0] and ends[1] < share
    assert held / RUNS >= 0.91
    # "Equal within the true difference" is what must not be said of more than 5 %.
    assert sure / RUNS <= 0.07


def test_the_interval_of_no_difference_is_exact_for_the_items_that_count() -> None:
    """100 items of one language and 50 of another; 20 more have nothing to judge."""
    metric = replace(LPR, aggregate="macro_ratio")
    rows = np.zeros((170, 4))
    rows[:100, :2], rows[100:150, 2:] = 1, 1
    (low, high) = intervals(pair(measured(metric, rows, rows)), 100, 0.95, np.random.default_rng())[
        -1
    ]
    # The smaller language weighs half: its share that may have been missed, halved.
    assert high == -low == pytest.approx((1 - 0.05 ** (1 / 50)) / 2)


@pytest.mark.parametrize(
    "metric, make",
    [
        (SHARE, lambda rng: paired_shares(rng, 60, 0.6)),
        (LPR, lambda rng: (passes(rng, 40, 4, 0.9), passes(rng, 40, 4, 0.9))),
        (replace(SPEED, better="lower"), lambda rng: latencies(rng, 10)),
        (MEDIAN, lambda rng: latencies(rng, 40)),
    ],
)
def test_equal_sides_are_called_different_no_more_often_than_the_level_allows(
    metric: Metric, make: Callable[[np.random.Generator], Pair]
) -> None:
    rng = np.random.default_rng(23)
    p_values = [
        compare(measured(metric, *make(rng)), seed=run, resamples=200).p for run in range(RUNS)
    ]
    wrong = sum(p is not None and p < 0.05 for p in p_values)
    # 15 are expected of 300; 27 or more in one of 300 cases.
    assert wrong <= 26


def same_endpoint_twice(rng: np.random.Generator) -> SuiteResult:
    """Recorded answers of an endpoint that was asked everything twice."""
    lines, words = ([passes(rng, 100, 4, share) for _ in range(2)] for share in (0.95, 0.97))
    pass_both = [np.hstack(pair) for pair in zip(lines, words, strict=True)]
    found = [measured(LPR, *lines), measured(LCPR, *pass_both)]
    for number, share in enumerate((0.3, 0.6, 0.9)):
        metric = replace(SHARE, name=f"task {number}")
        found.append(measured(metric, *paired_shares(rng, 150, share)))
    found.append(measured(SCORE, *(rng.normal(30, 5, 120) for _ in range(2))))
    found += [measured(metric, *latencies(rng, 80)) for metric in (MEDIAN, TAIL)]
    found.append(measured(SPEED, *latencies(rng, 80)))
    return SuiteResult("twice", tuple(found))


def test_the_same_endpoint_twice_is_never_better_or_worse_over_20_seeds() -> None:
    """Holm's method keeps the chance of any false alarm in a report below 5 %, so of 20 reports
    one is expected to have one; three or more in 8 % of cases at the very worst."""
    alarms, below = 0, []
    for seed in range(20):
        result = same_endpoint_twice(np.random.default_rng(seed))
        found = correct(compare(one, seed=seed, resamples=1000) for one in result.measurements)
        alarms += any(judge(one).verdict in ("better", "worse") for one in found)
        below += [one.p < 0.05 for one in found if one.p is not None]
    assert alarms <= 1
    assert len(below) == 180
    assert sum(below) <= 18


def verdict_of(metric: Metric, sides: Pair) -> tuple[str, float]:
    (found,) = correct([compare(measured(metric, *sides), seed=1, resamples=2000)])
    assert found.effect.value is not None
    return judge(found).verdict, found.effect.value


def test_answers_that_are_a_tenth_worse_are_found_with_sign_and_size() -> None:
    pair = paired_shares(np.random.default_rng(2), 500, 0.7, worse_by=0.1, alike=0.95)
    verdict, effect = verdict_of(SHARE, pair)
    assert verdict == "worse"
    assert -0.13 < effect < -0.07


def test_one_leak_in_fifty_answers_is_found_with_sign_and_size() -> None:
    leaks = replace(SHARE, better="lower")
    leaked = (np.random.default_rng(3).random(600) < 0.02).astype(float)
    verdict, effect = verdict_of(leaks, (np.zeros(600), leaked))
    assert verdict == "worse"
    assert 0.01 < effect < 0.03


def test_a_fifth_slower_is_found_with_sign_and_size() -> None:
    pair = latencies(np.random.default_rng(4), 60, slower=1.2)
    verdict, effect = verdict_of(replace(SPEED, better="lower"), pair)
    assert verdict == "worse"
    assert 1.15 < effect < 1.25
