"""What comes of the conditions of `--fail-on` (`conditions.py`) on a report.

A condition fails if it is met, and also where it cannot be checked: a gate must not pass silently.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import ge, gt, le, lt

from vllm_kprune.compare.conditions import Gate, possible, unknown, without_side
from vllm_kprune.compare.report.document import MetricReport, Report, SuiteReport
from vllm_kprune.compare.report.sides import of_side, sides_of
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.errors import KPruneError

__all__ = ["GateResult", "failed_gates", "gate_results", "worse_metrics"]

_MOST_NAMED = 4  # metrics in one reason
_OPERATORS = {"<": lt, "<=": le, ">": gt, ">=": ge}


@dataclass(frozen=True)
class GateResult:
    """What came of a gate, and why. As text, it begins with the condition as the user wrote it."""

    gate: Gate
    failed: bool
    why: str

    def __str__(self) -> str:
        return f"{self.gate.text}: {self.why}"


def failed_gates(
    gates: Sequence[Gate], report: Report, required: Iterable[str] = ()
) -> tuple[GateResult, ...]:
    """Those of `gate_results` that failed."""
    return tuple(one for one in gate_results(gates, report, required) if one.failed)


def gate_results(
    gates: Sequence[Gate], report: Report, required: Iterable[str] = ()
) -> tuple[GateResult, ...]:
    """Check each gate; `KPruneError` for a name that cannot occur in the report.

    `required` names suites that the user asked for: `worse` fails if one was not measured.
    """
    asked = set(required)
    return tuple(GateResult(gate, *_checked(gate, report, asked)) for gate in gates)


def _checked(gate: Gate, report: Report, asked: Collection[str]) -> tuple[bool, str]:
    """Whether a gate fails, and why: on any of the pruned sides that it is about."""
    sides = sides_of(report)
    if not sides:
        return _compare(gate, report) if gate.operator else _worse(gate, report, asked)
    name, only = without_side(gate.name, sides)
    plain = replace(gate, name=name)
    found = [
        (side, *_checked(plain, of_side(report, side), asked))
        for side in sides
        if only in ("", side)
    ]
    # The sides that failed first.
    found.sort(key=lambda one: not one[1])
    return found[0][1], "; ".join(f"{side}: {why}" for side, _, why in found)


def worse_metrics(suites: Iterable[SuiteReport]) -> list[str]:
    """Each metric that the report calls worse, with its suite and its effect."""
    return [
        f"{suite.name}: {_measured(one)}"
        for suite in suites
        for one in suite.metrics
        if one.verdict == "worse"
    ]


def _measured(metric: MetricReport) -> str:
    return f"{metric.title}: {metric.shown.effect}"


def _compare(gate: Gate, report: Report) -> tuple[bool, str]:
    """Whether a condition on a number is met, and what the data say."""
    metric = _metric(gate, report)
    if isinstance(metric, str):
        return True, metric
    if mistake := _impossible(gate.number, metric):
        return True, f"{_measured(metric)}; {mistake}"
    low, high = metric.effect.low, metric.effect.high
    if low is None or high is None:
        return True, f"{metric.title} cannot be checked: {metric.words}"
    holds = _OPERATORS[gate.operator]
    # A comparison with a number holds on the whole interval exactly if it holds at both ends, and
    # somewhere in it exactly if it holds at one of them.
    ends = [holds(low, gate.number), holds(high, gate.number)]
    what = f"{_measured(metric)} ({metric.words})"
    if all(ends):
        return True, f"{what}; so the condition is met"
    if any(ends):
        doubt = "this cannot be ruled out" if gate.doubt else "not met, but not ruled out either"
        return gate.doubt, f"{what}; {doubt}"
    return False, f"{what}; the data rule the condition out"


def _impossible(number: float, metric: MetricReport) -> str | None:
    """Why the metric cannot have such an effect, and what was meant perhaps."""
    if metric.effect_kind == "ratio" and metric.pruned is not None and number <= 0:
        return (
            "this is a ratio, pruned / original, so compare it with 1: "
            f"{metric.name}<1 is less than the original, {metric.name}>1 more"
        )
    if metric.unit == "share" and metric.effect_kind == "difference" and abs(number) > 1:
        return (
            f"a share and its difference lie between -1 and 1, so {number:g} is out of reach; "
            f"write {number:g}pp for percentage points, or {number / 100:g}"
        )
    return None


def _worse(gate: Gate, report: Report, required: Collection[str]) -> tuple[bool, str]:
    """Whether any verdict is "worse", or with `?` could be."""
    suites = [suite for suite in report.suites if gate.name in ("", suite.name)]
    needed = required if not gate.name else (gate.name,)
    for suite in suites:
        if suite.name in needed and not suite.metrics:
            return True, f"{suite.name} was {_unmeasured(suite.unavailable)}"
    judged = [
        (f"{suite.name}: {_measured(metric)}", metric.verdict)
        for suite in suites
        for metric in suite.metrics
        if metric.verdict != "informational"
    ]
    if not judged:
        return True, (
            "nothing was judged: all metrics are informational or not measured; use a condition "
            "with a number, such as exactness<0.98?"
        )
    worse, open_ = (
        [what for what, verdict in judged if verdict == one] for one in ("worse", "not enough data")
    )
    if worse:
        return True, f"{len(worse)} of {len(judged)} metrics are worse: {_some(worse)}"
    none = f"none of {len(judged)} metrics is worse"
    if not open_:
        return False, f"{none}, and each has enough data"
    doubt = f"{none}, but {len(open_)} had not enough data to rule it out: {_some(open_)}"
    return gate.doubt, doubt


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST_NAMED
    return "; ".join(texts[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _metric(gate: Gate, report: Report) -> MetricReport | str:
    """The metric that a gate names, or why it was not measured."""
    suites = {suite.name: suite for suite in report.suites}
    if gate.name in suites:
        return _main(suites[gate.name])
    candidates: dict[str, MetricReport | str] = {}
    for suite in report.suites:
        for name, one in _by_name(suite).items():
            if gate.name in (name, f"{suite.name}.{name}"):
                candidates[f"{suite.name}.{name}"] = one
    if len(candidates) > 1:
        raise KPruneError(f"--fail-on {gate.text}: which of {', '.join(sorted(candidates))}?")
    if candidates:
        return next(iter(candidates.values()))
    return _missing(gate, report)


def _main(suite: SuiteReport) -> MetricReport | str:
    found = (metric for metric in suite.metrics if metric.name == suite.main)
    why = suite.unavailable.get(suite.main or "")
    missing = f"{suite.main} not measured: {why}" if why else _unmeasured(suite.unavailable)
    return next(found, missing)


def _by_name(suite: SuiteReport) -> dict[str, MetricReport | str]:
    found: dict[str, MetricReport | str] = {}
    found.update({name: f"not measured: {why}" for name, why in suite.unavailable.items()})
    # Second, so that a measured metric replaces a reason of the same name.
    found.update({metric.name: metric for metric in suite.metrics})
    return found


def _missing(gate: Gate, report: Report) -> str:
    """Why a metric is missing from the report; a name that no suite can measure is an error."""
    suite, _, _ = gate.name.partition(".")
    for one in report.suites:
        # A metric without its suite could belong to any suite, also to one that did not run at all.
        if "*" in one.unavailable and (one.name == suite or "." not in gate.name):
            return _unmeasured(one.unavailable)
    able = {one.name: SUITES[one.name].metrics for one in report.suites if one.name in SUITES}
    if possible(gate.name, {name: None if "*" in able[name] else able[name] for name in able}):
        return f"{gate.name} not measured: this run had no data for it"
    known = {one.name: [metric.name for metric in one.metrics] for one in report.suites}
    raise KPruneError(f"--fail-on {gate.text}: {unknown(gate.name, known)}")


def _unmeasured(unavailable: Mapping[str, str]) -> str:
    why = unavailable.get("*") or "; ".join(unavailable.values()) or "it returned no results"
    return f"not measured: {why}"
