"""Laws of a comparison that hold for any data; test_interval_coverage.py checks its error rates."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.synthetic_measurements import (
    BYTES,
    LCPR,
    LPR,
    MEDIAN,
    SCORE,
    SHARE,
    SPEED,
    Floats,
    measured,
)

from vllm_kprune.compare.measurements import Measurement, Metric, SuiteResult
from vllm_kprune.compare.report.build import build_report
from vllm_kprune.compare.statistics.aggregates import AGGREGATES
from vllm_kprune.compare.statistics.comparison import Comparison, Estimate, compare, correct
from vllm_kprune.compare.statistics.intervals import rule_of_three

METRICS = (SHARE, LPR, LCPR, SPEED, MEDIAN, BYTES)


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    """Counts with gaps; from a drawn seed, since counts drawn one by one are mostly equal."""
    metric = METRICS[draw(st.integers(0, len(METRICS) - 1))]
    items = draw(st.integers(0, 3) | st.integers(4, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns = AGGREGATES[metric.aggregate].columns or 2
    most = 1 if metric is SHARE else draw(st.integers(1, 6))
    sides = rng.integers(0, most + 1, (2, items, columns)).astype(float)
    if metric.unit == "share" and columns > 1:
        # No more passed than were tried.
        sides[..., ::2] = np.minimum(sides[..., ::2], sides[..., 1::2])
    alike = rng.random(items) < draw(st.sampled_from([0.0, 0.5, 0.9]))
    sides[1, alike] = sides[0, alike]
    sides[rng.random(sides.shape) < draw(st.sampled_from([0.0, 0.1]))] = np.nan
    return Measurement(metric, tuple(f"{row}" for row in range(items)), sides[0], sides[1])


def quick(measurement: Measurement, seed: int = 0) -> Comparison:
    return compare(measurement, seed=seed, resamples=200)


def numbers(estimate: Estimate | None) -> Floats:
    assert estimate is not None
    found = [estimate.value, estimate.low, estimate.high]
    return np.array([np.nan if number is None else number for number in found])


@settings(max_examples=100)
@given(measurements())
def test_swapping_the_sides_mirrors_the_result(measurement: Measurement) -> None:
    assert measurement.pruned is not None
    there = quick(measurement)
    back = quick(replace(measurement, original=measurement.pruned, pruned=measurement.original))
    assert back.p == pytest.approx(there.p, abs=1e-12)
    assert (back.n, back.dropped, back.differing) == (there.n, there.dropped, there.differing)
    assert back.original.value == pytest.approx(there.pruned.value if there.pruned else None)
    value, low, high = numbers(there.effect)
    # The inverse of a ratio of nothing is unknown, as the ratio itself is.
    ratio = measurement.metric.effect == "ratio"
    mirrored = [1 / value, 1 / high, 1 / low] if ratio else [-value, -high, -low]
    np.testing.assert_allclose(numbers(back.effect), mirrored, rtol=1e-9, atol=1e-12)


@settings(max_examples=100)
@given(measurements(), st.randoms(use_true_random=False))
def test_a_seed_gives_one_result_whatever_the_order_of_items(
    measurement: Measurement, random: object
) -> None:
    assert measurement.pruned is not None
    order = list(range(len(measurement.items)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = replace(
        measurement,
        items=tuple(measurement.items[at] for at in order),
        original=measurement.original[order],
        pruned=measurement.pruned[order],
    )
    assert quick(shuffled) == quick(measurement)


@settings(max_examples=100)
@given(measurements())
def test_an_interval_holds_its_figure_and_a_share_stays_a_share(measurement: Measurement) -> None:
    found = quick(measurement)
    assert found.pruned is not None
    for estimate in (found.original, found.pruned, found.effect):
        value, low, high = numbers(estimate)
        if not np.isnan(low):
            assert low <= value <= high
    if found.metric.unit == "share" and found.effect.low is not None:
        assert found.effect.low >= -1
        for side in (found.original, found.pruned):
            value, low, high = numbers(side)
            assert 0 <= low <= high <= 1


@settings(max_examples=60)
@given(measurements())
def test_identical_sides_are_never_significant(measurement: Measurement) -> None:
    found = quick(replace(measurement, pruned=measurement.original.copy()))
    assert found.differing == 0
    assert found.p in (None, 1.0)
    if found.effect.low is not None and found.effect.high is not None:
        nothing = 1 if found.metric.effect == "ratio" else 0
        assert found.effect.low <= nothing <= found.effect.high


@settings(max_examples=60)
@given(measurements())
def test_an_item_without_a_value_on_a_side_counts_on_neither(measurement: Measurement) -> None:
    assert measurement.pruned is not None
    together = np.all if measurement.metric.aggregate == "p50" else np.any
    kept = ~(
        together(np.isnan(measurement.original), axis=1)
        | together(np.isnan(measurement.pruned), axis=1)
    )
    rest = Measurement(
        measurement.metric,
        tuple(np.array(measurement.items, dtype=str)[kept]),
        measurement.original[kept],
        measurement.pruned[kept],
    )
    found = quick(measurement)
    assert found.dropped == int((~kept).sum())
    assert replace(found, dropped=0) == quick(rest)


@pytest.mark.parametrize("metric", METRICS)
def test_no_items_give_no_figure_and_no_error(metric: Metric) -> None:
    columns = AGGREGATES[metric.aggregate].columns or 1
    nothing = np.empty((0, columns))
    found = compare(Measurement(metric, (), nothing, nothing), seed=1)
    assert found.effect == found.original == Estimate(None, None, None)
    assert (found.n, found.p) == (0, None)


def test_one_item_gives_figures_without_intervals() -> None:
    found = compare(measured(SHARE, [1], [0]), seed=1)
    assert found.effect == Estimate(-1.0, None, None)
    assert found.p is None


@pytest.mark.parametrize("metric", [SHARE, SPEED, SCORE, MEDIAN])
def test_fewer_than_six_items_give_figures_without_intervals(metric: Metric) -> None:
    five, six = ([1.0, 2.0, 1.5, 1.0, 2.0, 1.7][:items] for items in (5, 6))
    if metric is SHARE:
        five, six = [1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 1]
    found = compare(measured(metric, five, five), seed=1)
    for estimate in (found.original, found.effect):
        assert estimate.value is not None
        assert (estimate.low, estimate.high) == (None, None)
    assert found.p is None
    assert compare(measured(metric, six, six), seed=1).effect.low is not None


def test_a_counted_figure_is_exact() -> None:
    found = compare(measured(BYTES, [200.0], [150.0]), seed=1)
    assert found.original == Estimate(200.0, 200.0, 200.0)
    assert found.effect.value == pytest.approx(0.75)
    assert found.effect.low == found.effect.high == found.effect.value


def test_a_share_of_the_pair_has_an_interval_but_no_test() -> None:
    found = compare(measured(SHARE, [1] * 90 + [0] * 10, None), seed=1)
    assert found.pruned is None and found.p is None
    assert found.effect == found.original
    assert found.effect.low is not None and 0.8 < found.effect.low < 0.9


def test_many_items_alike_still_leave_room_for_an_unseen_difference() -> None:
    alike = [1.0] * 100
    found = compare(measured(SHARE, alike, alike), seed=1)
    assert found.effect.high is not None and 0.02 < found.effect.high < 0.04
    assert found.effect.low == pytest.approx(-found.effect.high)
    assert found.original.high == 1
    scored = compare(measured(SCORE, [30.0] * 100, [30.0] * 100), seed=1)
    assert scored.effect.high == pytest.approx(30 * rule_of_three(100, 0.95))
    assert rule_of_three(100, 0.95) == pytest.approx(0.0295, abs=1e-4)


@pytest.mark.parametrize(
    "metric, whole, nothing", [(LPR, [1, 1], [0, 0]), (LCPR, [1, 1, 1, 1], [0, 0, 0, 0])]
)
def test_answers_with_nothing_to_judge_are_none_that_differ(
    metric: Metric, whole: list[int], nothing: list[int]
) -> None:
    """Twelve empty answers on one side say no more about the rate than twelve missing ones."""
    found = compare(measured(metric, [whole] * 24, [whole] * 12 + [nothing] * 12), seed=1)
    assert found.differing == 0
    assert found.effect.value == 0
    assert found.effect.low is not None and found.effect.low < -0.05
    assert found.effect.high is not None and found.effect.high > 0.05


@pytest.mark.parametrize("items", [6, 12, 24, 200])
@pytest.mark.parametrize("metric, width", [(SHARE, 1), (LPR, 2), (LCPR, 4)])
def test_items_that_all_differ_alike_still_have_an_interval(
    metric: Metric, width: int, items: int
) -> None:
    right = np.ones((items, width))
    wrong = right * (np.arange(width) % 2)
    found = compare(measured(metric, right, wrong), seed=1)
    assert (found.differing, found.effect.value, found.effect.low) == (items, -1, -1)
    assert found.effect.high is not None and found.effect.high > -1 + 1 / items


@given(measurements())
def test_a_judged_interval_has_a_width(measurement: Measurement) -> None:
    effect = quick(measurement).effect
    if measurement.metric.aggregate != "exact" and measurement.metric.unit == "share":
        assert effect.low is None or effect.high is None or effect.low < effect.high


def test_a_figure_of_nothing_on_both_sides_has_no_interval() -> None:
    """The data do not say what an item would add."""
    assert compare(measured(SCORE, [0.0] * 50, [0.0] * 50), seed=1).effect == Estimate(
        0, None, None
    )


def test_a_few_items_are_tested_exactly() -> None:
    """Five differences in the same direction: 2 of the 32 arrangements are as extreme."""
    found = compare(measured(SHARE, [1] * 5 + [1] * 40, [0] * 5 + [1] * 40), seed=1)
    assert found.p == 2 / 32


def test_the_p_value_of_a_mean_is_that_of_sign_flips() -> None:
    rng = np.random.default_rng(5)
    gain = rng.normal(0.5, 1, 12)
    found = compare(measured(replace(SHARE, unit=""), np.zeros(12), gain), seed=1)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 12)).reshape(12, -1)
    flipped = np.abs(gain @ signs)
    assert found.p == pytest.approx(np.mean(flipped >= abs(gain.sum()) - 1e-9))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_nor_changes_the_order(p_values: list[float]) -> None:
    base = compare(measured(SHARE, [1, 0], [1, 1]), seed=1, resamples=10)
    found = correct([replace(base, p=p) for p in p_values])
    adjusted = [one.p_adjusted for one in found]
    for p, corrected in zip(p_values, adjusted, strict=True):
        assert corrected is not None and p <= corrected <= 1
    by_p = [adjusted[at] for at in np.argsort(p_values, kind="stable")]
    assert by_p == sorted(by_p, key=lambda one: one or 0.0)


def test_holm_as_in_his_paper() -> None:
    base = compare(measured(SHARE, [1, 0], [1, 1]), seed=1, resamples=10)
    told = replace(base, p=None)
    found = correct([replace(base, p=0.01), told, replace(base, p=0.04), replace(base, p=0.03)])
    assert [one.p_adjusted for one in found] == pytest.approx([0.03, None, 0.06, 0.06])


@pytest.mark.parametrize(
    "features, mistake",
    [([[1, 2]], "expected"), ([[np.inf]], "infinite"), ([[1], [2]], "expected")],
)
def test_features_of_another_shape_are_refused(features: object, mistake: str) -> None:
    rows = np.array(features, dtype=float)
    with pytest.raises(ValueError, match=mistake):
        compare(Measurement(SHARE, ("a",), rows, rows), seed=1)


def test_an_item_that_occurs_twice_is_refused() -> None:
    rows = np.ones((2, 1))
    with pytest.raises(ValueError, match="twice"):
        compare(Measurement(SHARE, ("a", "a"), rows, rows), seed=1)


@pytest.mark.parametrize("name", AGGREGATES)
def test_only_a_quantiles_sides_may_have_rows_of_another_length(name: str) -> None:
    aggregate = AGGREGATES[name]
    columns = aggregate.columns or 7
    metric = replace(SHARE, name="one", aggregate=name, unit="ms")
    wide, narrow = np.ones((8, columns * 4 + 3)), np.ones((8, columns))
    sides = Measurement(metric, tuple("abcdefgh"), wide, narrow)
    if aggregate.quantile is None:
        with pytest.raises(ValueError, match="expected"):
            quick(sides)
        return
    result = SuiteResult("latency", (sides, replace(sides, original=narrow, pruned=wide)))
    report = build_report([result], endpoints=(), settings={}, versions={}, seed=1, resamples=50)
    assert [metric.effect.value for metric in report.suites[0].metrics] == [0, 0]


@pytest.mark.parametrize("side", ["original", "pruned"])
def test_a_side_may_have_more_values_of_an_item_than_the_other(side: str) -> None:
    """Answers stream in fewer chunks on one side; the shorter rows are padded."""
    rng = np.random.default_rng(0)
    items = tuple(f"round {row}" for row in range(9))
    even = Measurement(MEDIAN, items, *rng.normal(10, 1, (2, 9, 4)))
    wider = np.pad(getattr(even, side), ((0, 0), (0, 3)), constant_values=np.nan)
    assert quick(replace(even, **{side: wider})) == quick(even)
