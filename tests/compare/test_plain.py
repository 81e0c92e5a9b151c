"""The plain sentence of a suite, and what a reader sees first."""

from dataclasses import replace

import pytest
from support.synthetic_measurements import LPR, SCORE, SHARE, SPEED, measured
from support.synthetic_report import reported

from vllm_kprune.compare.measurements import Example, Measurement, Span, SuiteResult
from vllm_kprune.compare.report.examples import choose_examples
from vllm_kprune.compare.statistics.verdicts import Judgement, judge_suite

WORSE = [[0, 1]] * 20 + [[1, 1]] * 280


def sentence_of(measurement: Measurement) -> str:
    return reported(SuiteResult("suite", (measurement,))).suites[0].sentence


@pytest.mark.parametrize(
    ("measurement", "text"),
    [
        (
            measured(LPR, [[1, 1]] * 300, [[1, 1]] * 300),
            "no flaw on either side in 300 items; at most 1.0 pp apart",
        ),
        (
            measured(replace(SHARE, better="lower"), [0.0] * 300, [0.0] * 300),
            "no flaw on either side in 300 items; at most 1.0 pp apart",
        ),
        (measured(LPR, WORSE, WORSE), "Line pass rate: 93.3 % and 93.3 %; at most 1.0 pp apart"),
    ],
)
def test_equal_sides_are_said_to_be_at_most_so_far_apart(
    measurement: Measurement, text: str
) -> None:
    assert sentence_of(measurement) == text


def test_a_difference_is_told_with_both_ends_and_a_ratio_in_words() -> None:
    text = sentence_of(measured(LPR, [[1, 1]] * 300, WORSE))
    assert text.startswith("Line pass rate: 100.0 % → 93.3 %; the difference is between −9.")
    wave = [1 + 0.05 * (item % 7) for item in range(60)]
    text = sentence_of(measured(SPEED, wave, [0.92 * one for one in wave]))
    assert "8 % less (between " in text
    assert "2 % more" in sentence_of(measured(SPEED, wave, [1.02 * one for one in wave]))
    assert "points" in sentence_of(measured(SCORE, [30.0 + n % 5 for n in range(60)], wave))


@pytest.mark.slow
def test_an_interval_that_excludes_0_but_not_after_correction_says_so() -> None:
    """Of 300 items 7 are worse: p = 0.016 alone, and 0.31 among twenty metrics."""
    few = [[0, 1]] * 7 + [[1, 1]] * 293
    main = measured(LPR, [[1, 1]] * 300, few)
    others = [
        measured(replace(LPR, name=f"other{n}", title=f"other {n}"), WORSE, WORSE[::-1])
        for n in range(19)
    ]
    suite = reported(SuiteResult("suite", (main, *others))).suites[0]
    metric = suite.metrics[0]
    assert metric.effect.high is not None and metric.effect.high < 0
    assert metric.verdict == "not enough data"
    assert suite.sentence.endswith(" pp, but not after correction")
    alone = reported(SuiteResult("suite", (main,))).suites[0]
    assert alone.verdict == "worse" and "correction" not in alone.sentence


def test_what_was_not_measured_says_why() -> None:
    missing = SuiteResult("suite", (), unavailable={"*": "no chat"})
    assert reported(missing).suites[0].sentence == "not measured: no chat"
    pair = measured(SHARE, [1.0] * 9 + [0.0], None)
    assert sentence_of(pair).endswith(": 90.0 %")


def test_titles_with_commas_are_quoted() -> None:
    worse = Judgement("worse", "worse")
    equal = Judgement("equal", "equal")
    words = judge_suite([("chrF++, all", worse), ("BLEU", worse), ("c", equal)]).words
    assert words.startswith('worse in 2 ("chrF++, all", BLEU), equal in 1')


def test_flawed_pairs_come_before_identical_ones() -> None:
    flaw = ((Span(0, 1, "x"),), ())

    def example(name: str, answers: tuple[str, str], spans: object = ((), ())) -> Example:
        return Example(name, "", answers, spans=spans)  # type: ignore[arg-type]

    given = [
        example("same", ("a", "a")),
        example("flawed and same", ("a", "a"), flaw),
        example("differ", ("a", "b")),
        example("flawed", ("a", "b"), flaw),
    ]
    names = [one.item for one in choose_examples(given)]
    assert names == ["flawed", "flawed and same", "differ", "same"]
