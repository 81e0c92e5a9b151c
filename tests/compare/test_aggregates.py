import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.synthetic_measurements import Floats

from vllm_kprune.compare.statistics.aggregates import AGGREGATES

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def columns(name: str) -> int:
    return AGGREGATES[name].columns or 3


@pytest.mark.parametrize("name", AGGREGATES)
@given(data=st.data())
@pytest.mark.slow
def test_weights_do_what_repeating_the_items_does(name: str, data: st.DataObject) -> None:
    items = data.draw(st.integers(1, 6))
    counts = st.integers(0, 50).map(float)
    width = columns(name) if name not in QUANTILES else data.draw(st.sampled_from([1, 3, 9]))
    features = data.draw(arrays(np.float64, (items, width), elements=counts))
    weights = data.draw(arrays(np.int64, items, elements=st.integers(0, 4)))
    compute = AGGREGATES[name].compute
    weighted = compute(features, weights[None].astype(float))
    repeated = np.repeat(features, weights, axis=0)
    expected = compute(repeated, np.ones((1, len(repeated))))
    np.testing.assert_allclose(weighted, expected, rtol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", AGGREGATES)
def test_each_resample_is_worked_out_by_itself(name: str) -> None:
    rng = np.random.default_rng(3)
    features = rng.integers(1, 40, (12, columns(name))).astype(float)
    weights = rng.integers(0, 3, (9, 12)).astype(float)
    together = AGGREGATES[name].compute(features, weights)
    apart = [AGGREGATES[name].compute(features, row[None])[0] for row in weights]
    np.testing.assert_allclose(together, apart, rtol=1e-12)


@pytest.mark.parametrize("name", QUANTILES)
@given(data=st.data())
def test_quantiles_are_numpys_over_all_values_that_are_there(
    name: str, data: st.DataObject
) -> None:
    shape = (data.draw(st.integers(1, 7)), data.draw(st.sampled_from([1, 3, 9])))
    value = st.floats(-1e3, 1e3) | st.just(np.nan)
    features = data.draw(arrays(np.float64, shape, elements=value))
    found = AGGREGATES[name].compute(features, np.ones((1, len(features))))[0]
    present = features[~np.isnan(features)]
    expected = np.quantile(present, QUANTILES[name]) if len(present) else np.nan
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_rates_are_means_of_rates_over_samples_and_not_over_items() -> None:
    features = np.array([[1, 1, 0, 1], [0, 3, 1, 1]], dtype=float)
    every = np.ones((1, 2))
    assert AGGREGATES["ratio"].compute(features[:, :2], every) == [0.25]
    assert AGGREGATES["harmonic"].compute(features, every) == [2 * 0.25 * 0.5 / 0.75]


def test_a_rate_of_nothing_is_not_a_number_and_two_rates_of_zero_are_zero() -> None:
    every = np.ones((1, 1))
    assert np.isnan(AGGREGATES["ratio"].compute(np.array([[0.0, 0.0]]), every)[0])
    assert AGGREGATES["harmonic"].compute(np.array([[0.0, 2.0, 0.0, 2.0]]), every) == [0.0]


PAIRS = [
    ("the cat sat on the mat", "the cat is on the mat today"),
    ("서울은 대한민국의 수도입니다", "서울은 대한민국의 수도이다"),
    ("", "nothing was said"),
    ("a b", "c d"),
    ("one b two d three", "one x two y three"),
    ("one two three four five six", "one two three four five six"),
]


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    metric = sacrebleu.BLEU()
    for pairs in (PAIRS, PAIRS[:1], PAIRS[1:4], PAIRS[2:3], PAIRS[4:5]):
        answers, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        features = np.array(metric._extract_corpus_statistics(answers, [references]), dtype=float)
        found = AGGREGATES["bleu"].compute(features, np.ones((1, len(pairs))))[0]
        assert found == pytest.approx(metric.corpus_score(answers, [references]).score, abs=1e-6)


def test_chrf_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    metric = sacrebleu.CHRF(word_order=2)
    for pairs in (PAIRS, PAIRS[:1], PAIRS[1:4], PAIRS[2:3], PAIRS[4:5]):
        answers, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        features = np.array(metric._extract_corpus_statistics(answers, [references]), dtype=float)
        found = AGGREGATES["chrf"].compute(features, np.ones((1, len(pairs))))[0]
        assert found == pytest.approx(metric.corpus_score(answers, [references]).score, abs=1e-6)


def test_a_mean_over_languages_weighs_them_alike_and_needs_all() -> None:
    features = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=float)
    weights = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=float)
    found = AGGREGATES["macro_ratio"].compute(features, weights)
    np.testing.assert_allclose(found, [(2 / 3 + 0) / 2, np.nan])


@given(arrays(np.float64, (5, 8), elements=st.integers(0, 9).map(float)))
def test_a_mean_over_one_language_is_its_figure(features: Floats) -> None:
    every = np.ones((1, 5))
    one, two = (AGGREGATES["harmonic"].compute(part, every) for part in np.split(features, 2, 1))
    macro = AGGREGATES["macro_harmonic"].compute
    np.testing.assert_array_equal(macro(features[:, :4], every), one)
    np.testing.assert_allclose(macro(features, every), (one + two) / 2)


def test_nothing_that_passes_is_a_pass_rate_of_nothing() -> None:
    features = np.array([[0, 1, 0, 0], [0, 1, 0, 0]], dtype=float)
    assert AGGREGATES["harmonic"].compute(features, np.ones((1, 2))) == [0]
