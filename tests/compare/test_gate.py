import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic_measurements import BYTES, LCPR, LPR, SHARE, SPEED, measured

from vllm_kprune.compare.conditions import check_gates, parse_gates
from vllm_kprune.compare.gate import failed_gates, gate_results, worse_metrics
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.report.build import build_report
from vllm_kprune.compare.report.document import Report
from vllm_kprune.errors import KPruneError


@pytest.fixture(scope="module")
def report() -> Report:
    """Stability worse by 10 points, speed up by 1.4 with little doubt, accuracy uncertain."""
    worse = [[1, 1]] * 90 + [[0, 1]] * 10
    wave = [1 + 0.05 * (item % 7) for item in range(60)]
    faster = [1.4 * each * (1 + 0.01 * (item % 5 - 2)) for item, each in enumerate(wave)]
    right = [item % 2 for item in range(100)]
    unsure = [item % 2 if item % 9 else 1 - item % 2 for item in range(100)]
    results = [
        SuiteResult("stability", (measured(LPR, [[1, 1]] * 100, worse),)),
        SuiteResult("latency", (measured(SPEED, wave, faster),), unavailable={"ttft": "no stream"}),
        SuiteResult("accuracy", (measured(SHARE, right, unsure),)),
        SuiteResult("memory", (measured(BYTES, [2.0], [1.5]),)),
        SuiteResult("input", (), unavailable={"*": "pruning is off"}),
        SuiteResult("again", (measured(SHARE, [1, 0], [1, 0]), measured(SPEED, [1.0], [1.0]))),
    ]
    return build_report(results, endpoints=(), settings={}, versions={}, seed=1, resamples=1000)


@pytest.mark.parametrize(
    "gate",
    [
        "stability<0",
        "stability <= 0",
        "stability.lpr<-0.01",
        "lpr<0",
        "latency.decode_ratio<1.5",
        "latency<1.5",
        "latency>1.2",
        "accuracy<0.02?",
        "accuracy>-0.02?",
        "memory>0.7",
        "memory<=0.75",
        "ttft<1",
        "latency.ttft<1",
        "input<0",
        "input.saved<0",
        "again.decode_ratio<1",
    ],
)
def test_gates_that_fail(report: Report, gate: str) -> None:
    (failure,) = failed_gates(parse_gates([gate]), report)
    assert failure.why


@pytest.mark.parametrize(
    "gate",
    [
        "stability>0",
        "stability<-0.5",
        "stability>0?",
        "latency<1.3",
        "latency<1.3?",
        "accuracy<0",
        "accuracy>0",
        "memory<0.75",
        "memory<0.75?",
    ],
)
def test_gates_that_hold(report: Report, gate: str) -> None:
    assert failed_gates(parse_gates([gate]), report) == ()


def test_a_failure_says_what_was_measured_or_why_it_was_not(report: Report) -> None:
    gates = parse_gates(["stability<0", "ttft<1", "input<0", "accuracy<0?"])
    reasons = [failure.why for failure in failed_gates(gates, report)]
    assert reasons[0].startswith("Line pass rate: −10.0 pp [")
    assert reasons[1] == "not measured: no stream"
    assert reasons[2] == "not measured: pruning is off"
    assert "cannot be ruled out" in reasons[3]


def test_a_failure_begins_with_its_condition_also_where_the_metric_got_better(
    report: Report,
) -> None:
    (failure,) = failed_gates(parse_gates(["memory < 2"]), report)
    assert str(failure).startswith("memory<2: ")
    assert str(failure).endswith("×0.75 (better); so the condition is met")


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ("memory<0", "this is a ratio, pruned / original, so compare it with 1: "),
        ("latency.decode_ratio<-0.05", "decode_ratio<1 is less than the original"),
        ("stability<-2", "write -2pp for percentage points, or -0.02"),
        ("accuracy>5?", "write 5pp for percentage points, or 0.05"),
    ],
)
def test_a_number_that_the_metric_cannot_have_never_passes(
    report: Report, gate: str, said: str
) -> None:
    (failure,) = failed_gates(parse_gates([gate]), report)
    assert said in failure.why


@pytest.mark.parametrize(
    ("gate", "same"),
    [("stability<-2pp", "stability<-0.02"), ("memory<75%?", "memory<0.75?"), ("a > 5 ", "a>5")],
)
def test_percentage_points_and_percent_are_hundredths(gate: str, same: str) -> None:
    (one,), (other,) = parse_gates([gate]), parse_gates([same])
    assert (one.name, one.operator, one.doubt) == (other.name, other.operator, other.doubt)
    assert one.number == pytest.approx(other.number)


def with_main(main: str | None, **unavailable: str) -> Report:
    """Line pass rates that are certainly equal, in a suite with another main metric."""
    equal = measured(LPR, [[1, 1]] * 2000, [[1, 1]] * 2000)
    result = SuiteResult("stability", (equal,), unavailable=unavailable, main=main)
    return build_report([result], endpoints=(), settings={}, versions={}, seed=1, resamples=50)


def test_a_suite_whose_main_metric_is_missing_fails_with_the_reason() -> None:
    gates = parse_gates(["stability<-0.5"])
    assert failed_gates(gates, with_main(None)) == failed_gates(gates, with_main("lpr")) == ()
    (failure,) = failed_gates(gates, with_main("lcpr_t0", lcpr_t0="no words", wpr_t0="no lines"))
    assert failure.why == "lcpr_t0 not measured: no words"
    (failure,) = failed_gates(gates, with_main("lcpr_t0"))
    assert failure.why == "not measured: it returned no results"


def test_a_name_that_the_suite_can_give_but_did_not_fails_and_is_no_mistake() -> None:
    """Rates of single languages exist only if several languages are compared."""
    for gate in ("stability.lpr_ko_t0<0", "lpr_ko_t0<0"):
        (failure,) = failed_gates(parse_gates([gate]), with_main("lpr"))
        assert "lpr_ko_t0 not measured" in failure.why
    with pytest.raises(KPruneError, match="no such suite or metric"):
        failed_gates(parse_gates(["stability.lpr_korean<0"]), with_main("lpr"))


def test_a_reason_says_once_that_it_was_not_measured() -> None:
    nothing = SuiteResult("input", (), unavailable={"*": "not measured: the server died"})
    found = build_report([nothing], endpoints=(), settings={}, versions={}, seed=1)
    assert found.suites[0].unavailable == {"*": "the server died"}
    (failure,) = failed_gates(parse_gates(["input<0"]), found)
    assert failure.why == "not measured: the server died"


def judged(*results: SuiteResult) -> Report:
    return build_report(results, endpoints=(), settings={}, versions={}, seed=1, resamples=200)


def test_worse_fails_exactly_where_a_verdict_says_so(report: Report) -> None:
    (result,) = gate_results(parse_gates(["worse"]), report)
    assert result.failed
    assert str(result).startswith("worse: 1 of 6 metrics are worse: stability: Line pass rate: −10")
    assert worse_metrics(report.suites) == [result.why.partition(": ")[2]]
    suites = {suite.name: suite for suite in report.suites}
    for name in ("stability", "latency", "accuracy", "memory"):
        (result,) = gate_results(parse_gates([f"{name}.worse"]), report)
        assert result.failed == (suites[name].verdict == "worse"), name


def test_worse_says_what_it_could_not_rule_out_and_fails_on_it_with_a_question_mark(
    report: Report,
) -> None:
    sure, doubtful = gate_results(parse_gates(["accuracy.worse", "accuracy.worse?"]), report)
    assert (sure.failed, doubtful.failed) == (False, True)
    assert "1 had not enough data to rule it out: accuracy: " in sure.why == doubtful.why
    (equal,) = gate_results(parse_gates(["worse?"]), with_main("lpr"))
    assert not equal.failed and "none of 1 metrics is worse" in equal.why


def test_worse_fails_where_nothing_was_judged_or_a_suite_that_was_asked_for_is_missing(
    report: Report,
) -> None:
    pair_only = SuiteResult("exactness", (measured(SHARE, [1.0] * 20, None),))
    (failure,) = failed_gates(parse_gates(["worse"]), judged(pair_only))
    assert "nothing was judged" in failure.why and "exactness<0.98?" in failure.why
    missing = SuiteResult("input", (), unavailable={"*": "pruning is off"})
    equal = SuiteResult("stability", (measured(LPR, [[1, 1]] * 2000, [[1, 1]] * 2000),))
    gates = parse_gates(["worse"])
    assert not failed_gates(gates, judged(equal, missing))
    (failure,) = failed_gates(gates, judged(equal, missing), required=("input", "stability"))
    assert failure.why == "input was not measured: pruning is off"
    (failure,) = failed_gates(parse_gates(["input.worse"]), report)
    assert failure.why == "input was not measured: pruning is off"


def test_a_condition_that_holds_says_whether_the_data_rule_it_out(report: Report) -> None:
    ruled_out, open_ = gate_results(parse_gates(["latency<1.3", "accuracy<0"]), report)
    assert not ruled_out.failed and not open_.failed
    assert "[" in ruled_out.why and ruled_out.why.endswith("; the data rule the condition out")
    assert "[" in open_.why and open_.why.endswith("; not met, but not ruled out either")


def test_a_question_mark_only_ever_adds_failures(report: Report) -> None:
    for number in ("-0.2", "-0.1", "0", "0.05", "0.2"):
        for operator in ("<", "<=", ">", ">="):
            gate = f"accuracy{operator}{number}"
            sure = failed_gates(parse_gates([gate]), report)
            doubtful = failed_gates(parse_gates([f"{gate}?"]), report)
            assert len(sure) <= len(doubtful)


def test_several_gates_can_be_given_in_one_text() -> None:
    gates = parse_gates(["stability < 0, decode_ratio<1.5 lpr@0>=-0.01?", "memory>1"])
    assert [gate.name for gate in gates] == ["stability", "decode_ratio", "lpr@0", "memory"]
    assert [gate.number for gate in gates] == [0, 1.5, -0.01, 1]
    assert [gate.doubt for gate in gates] == [False, False, True, False]


@pytest.mark.parametrize(
    "text",
    ["", "stability", "<0", "stability=0", "stability<", "stability<0.1.2", "Stability<0",
     "stability<nan", "stability<1e3", "a.b<0x1", "stability<0??", "a<b", "a<0;b>1", "a<0<1"],
)  # fmt: skip
def test_what_is_not_a_gate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(KPruneError, match="stability<0"):
        parse_gates([text])


@given(st.text(max_size=30))
def test_any_text_is_a_gate_or_a_plain_mistake(text: str) -> None:
    try:
        gates = parse_gates([text])
    except KPruneError:
        return
    assert gates and all(gate.operator in ("<", "<=", ">", ">=") for gate in gates)


KNOWN = {"stability": ("lpr@*", "lcpr@*"), "latency": ("decode_ratio", "ttft"), "accuracy": None}


@pytest.mark.parametrize(
    "gate",
    ["stability<0", "lpr@0<0", "stability.lcpr@1<0", "decode_ratio<1", "accuracy.kmmlu<0", "worse",
     "latency.worse?"],
)  # fmt: skip
def test_names_that_can_be_in_the_report_pass_before_any_work(gate: str) -> None:
    check_gates(parse_gates([gate]), KNOWN)


@pytest.mark.parametrize(
    "gate, hint",
    [
        ("stabilty<0", "did you mean 'stability'"),
        ("latency.decode<1", "latency.decode_ratio"),
        ("memory<1", "known: accuracy"),
        ("kmmlu<0", "known: accuracy"),
        ("memory.worse", "known: accuracy"),
        ("stability.bleu<0", "known: accuracy"),
    ],
)
def test_other_names_are_refused_with_the_known_ones(gate: str, hint: str) -> None:
    with pytest.raises(KPruneError, match="no such suite or metric") as raised:
        check_gates(parse_gates([gate]), KNOWN)
    assert hint in str(raised.value)


def test_after_the_work_an_unknown_or_ambiguous_name_is_a_mistake_too(report: Report) -> None:
    with pytest.raises(KPruneError, match=r"which of accuracy\.share, again\.share"):
        failed_gates(parse_gates(["share<0"]), report)
    with pytest.raises(KPruneError, match="no such suite or metric"):
        failed_gates(parse_gates(["stability.bleu<0"]), report)


def test_the_harmonic_mean_can_be_gated_like_any_metric() -> None:
    rows = [[1, 1, 1, 1]] * 50 + [[1, 1, 0, 1]] * 50
    result = SuiteResult("stability", (measured(LCPR, [[1, 1, 1, 1]] * 100, rows),))
    found = build_report([result], endpoints=(), settings={}, versions={}, seed=1, resamples=200)
    assert len(failed_gates(parse_gates(["stability<-0.2"]), found)) == 1
