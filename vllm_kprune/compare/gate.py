"""`--fail-on`: conditions on a report that make a build in CI fail.

    gate = name operator number ["?"]      name = suite | suite.metric | metric
    operator = "<" | "<=" | ">" | ">="     number = decimal, e.g. 0, -0.01, 1.5

The number is compared with the *effect*: pruned - original in the metric's unit (0.01 is one
percentage point of a share), pruned / original for a metric whose effect is a ratio, or the score
itself for a metric of the pair. A suite stands for its main metric, and for no other if that one
could not be measured. A metric without its suite must be the only one of that name.

    stability<0             fails if the data show it: the whole interval is below 0
    decode_ratio<1.5?       fails if the data cannot rule it out: part of the interval is below 1.5

The point estimate alone is never used, since it is below 0 in half of all runs of two equal models.
A gate on a metric that was not measured, or that has no interval, fails: a gate that cannot be
checked must not pass silently.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import ge, gt, le, lt

from vllm_kprune.compare.report.document import MetricReport, Report, SuiteReport
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.errors import KPruneError, nearest, shown

__all__ = ["Gate", "GateFailure", "check_gates", "failed_gates", "parse_gates"]

# A metric's name may contain dots, as tasks of lm-eval do, but not end in one. Numbers have neither
# exponents nor more than 12 digits on a side, so no text becomes infinity or NaN.
_GATE = re.compile(
    r"\s*(?P<name>[a-z0-9_@-]+(?:\.[a-z0-9_@.-]*[a-z0-9_@-])?)\s*(?P<operator><=|>=|<|>)"
    r"\s*(?P<number>[+-]?[0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(?P<doubt>\?)?\s*"
)
_OPERATORS = {"<": lt, "<=": le, ">": gt, ">=": ge}


@dataclass(frozen=True)
class Gate:
    """One condition; `doubt` stands for the question mark: fail unless it is ruled out."""

    text: str
    name: str
    operator: str
    number: float
    doubt: bool


@dataclass(frozen=True)
class GateFailure:
    """A gate that failed, and why. As text, it begins with the condition as the user wrote it."""

    gate: Gate
    why: str

    def __str__(self) -> str:
        return f"{self.gate.text}: {self.why}"


def parse_gates(texts: Sequence[str]) -> tuple[Gate, ...]:
    """Read gates; spaces or commas separate several gates in one text."""
    return tuple(_parse(part) for text in texts for part in _split(text))


def _split(text: str) -> list[str]:
    # Spaces around an operator belong to the gate; other spaces and commas separate gates.
    joined = re.sub(r"\s*(<=|>=|<|>)\s*", r"\1", text)
    # An empty text remains as one gate, so that `_parse` refuses it.
    return [part for part in re.split(r"[\s,]+", joined) if part] or [text]


def _parse(text: str) -> Gate:
    found = _GATE.fullmatch(text)
    if not found:
        raise KPruneError(
            f"--fail-on {shown(text)} cannot be read; expected NAME OPERATOR NUMBER, for example "
            '"stability<0", "latency.decode_ratio<1.5" or, to fail in doubt as well, "stability<0?"'
        )
    number = float(found["number"])
    return Gate(text.strip(), found["name"], found["operator"], number, bool(found["doubt"]))


def check_gates(gates: Sequence[Gate], known: Mapping[str, Collection[str] | None]) -> None:
    """Refuse names that cannot occur in the report, before any work is done.

    `known` maps the suites of this run to the names (or shell patterns) of their possible metrics,
    or to None if they are not known in advance. Metrics of such a suite are accepted only as
    `suite.metric`, so that a misspelt suite is not mistaken for one of them.
    """
    for gate in gates:
        if not _possible(gate.name, known):
            raise KPruneError(f"--fail-on {gate.text}: {_unknown(gate.name, known)}")


def _possible(name: str, known: Mapping[str, Collection[str] | None]) -> bool:
    suite, _, metric = name.partition(".")
    if name in known:
        return True
    if suite in known:
        patterns = known[suite]
        return patterns is None or _matches(metric, patterns)
    return any(_matches(name, patterns or ()) for patterns in known.values())


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _unknown(name: str, known: Mapping[str, Collection[str] | None]) -> str:
    names = {f"{suite}.{metric}" for suite, metrics in known.items() for metric in metrics or ()}
    return f"no such suite or metric in this run; {nearest(name, {*known, *names})}"


def failed_gates(gates: Sequence[Gate], report: Report) -> tuple[GateFailure, ...]:
    """The gates that fail on a report; `KPruneError` for a name that cannot occur in it."""
    found = ((gate, _why(gate, report)) for gate in gates)
    return tuple(GateFailure(gate, why) for gate, why in found if why)


def _why(gate: Gate, report: Report) -> str | None:
    metric = _metric(gate, report)
    if isinstance(metric, str):
        return metric
    low, high = metric.effect.low, metric.effect.high
    if low is None or high is None:
        return f"{metric.title} cannot be checked: {metric.words}"
    holds = _OPERATORS[gate.operator]
    # A comparison with a number holds on the whole interval exactly if it holds at both ends, and
    # somewhere in it exactly if it holds at one of them.
    ends = [holds(low, gate.number), holds(high, gate.number)]
    if any(ends) if gate.doubt else all(ends):
        why = "so the condition is met" if all(ends) else "this cannot be ruled out"
        return f"{metric.title}: {metric.shown.effect} ({metric.words}); {why}"
    return None


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
    if _possible(gate.name, {name: None if "*" in able[name] else able[name] for name in able}):
        return f"{gate.name} not measured: this run had no data for it"
    known = {one.name: [metric.name for metric in one.metrics] for one in report.suites}
    raise KPruneError(f"--fail-on {gate.text}: {_unknown(gate.name, known)}")


def _unmeasured(unavailable: Mapping[str, str]) -> str:
    why = unavailable.get("*") or "; ".join(unavailable.values()) or "it returned no results"
    return f"not measured: {why}"
