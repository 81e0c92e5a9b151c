"""`--fail-on`: conditions on a report that make a build in CI fail.

    gate = [suite "."] "worse" ["?"]  |  name operator number ["?"]
    name = suite | suite.metric | metric
    operator = "<" | "<=" | ">" | ">="     number = decimal, e.g. 0, -0.01, 1.5, -1pp, 95%

    worse                   fails if any metric of the report has the verdict "worse"
    worse?                  fails if any could be: also where there is not enough data
    stability.worse         the same for the metrics of one suite

`worse` is what most builds want: it cannot pass beside a verdict that says the opposite, and it is
corrected for the number of metrics. It cannot be used on suites whose metrics are informational.

In the other form, the number is compared with the *effect*: pruned - original in the metric's unit
(0.01 is one percentage point of a share), pruned / original for a metric whose effect is a ratio,
or the score itself for a metric of the pair. A suite stands for its main metric, and for no other
if that one could not be measured. A metric without its suite must be the only one of that name.

A number that its metric cannot have, such as 0 for a ratio or -2 for a share, fails as well: it is
a mistake, and would otherwise pass for ever.

    stability<0             fails if the data show it: the whole interval is below 0
    decode_ratio<1.5?       fails if the data cannot rule it out: part of the interval is below 1.5

The point estimate alone is never used, since it is below 0 in half of all runs of two equal models.
With several pruned sides, a condition holds for each of them, or for the one that it names:
`stability@guarded<0`, `stability@guarded.lpr_t0<0`, `decode_ratio@guarded<1.5?`.

A gate on a metric that was not measured, or that has no interval, fails: a gate that cannot be
checked must not pass silently. A gate that passes says whether the data rule its condition out.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vllm_kprune.compare.margins import Margin
from vllm_kprune.compare.run import Suite
from vllm_kprune.errors import KPruneError, nearest, shown

__all__ = [
    "Gate",
    "check_gates",
    "check_margins",
    "parse_gates",
    "possible",
    "unknown",
    "without_side",
]


# A metric's name may contain dots, as tasks of lm-eval do, but not end in one. Numbers have neither
# exponents nor more than 12 digits on a side, so no text becomes infinity or NaN.
_GATE = re.compile(
    r"\s*(?P<name>[a-z0-9_@-]+(?:\.[a-z0-9_@.-]*[a-z0-9_@-])?)\s*(?P<operator><=|>=|<|>)"
    r"\s*(?P<number>[+-]?[0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(?P<unit>pp|%)?(?P<doubt>\?)?\s*"
)
_WORSE = re.compile(r"\s*(?:(?P<suite>[a-z0-9_]+(?:@[a-z0-9_]+)?)\.)?worse(?P<doubt>\?)?\s*")


@dataclass(frozen=True)
class Gate:
    """One condition; `doubt` stands for the question mark: fail unless it is ruled out.

    `name` is a suite, a metric or both. Without an operator, the condition is a verdict of "worse"
    on any metric of the suite `name`, or of the whole report if it is empty.
    """

    text: str
    name: str
    operator: str = ""
    number: float = 0.0
    doubt: bool = False


def parse_gates(texts: Sequence[str]) -> tuple[Gate, ...]:
    """Read gates; spaces or commas separate several gates in one text."""
    return tuple(_parse(part) for text in texts for part in _split(text))


def _split(text: str) -> list[str]:
    # Spaces around an operator belong to the gate; other spaces and commas separate gates.
    joined = re.sub(r"\s*(<=|>=|<|>)\s*", r"\1", text)
    # An empty text remains as one gate, so that `_parse` refuses it.
    return [part for part in re.split(r"[\s,]+", joined) if part] or [text]


def _parse(text: str) -> Gate:
    if found := _WORSE.fullmatch(text):
        return Gate(text.strip(), found["suite"] or "", doubt=bool(found["doubt"]))
    found = _GATE.fullmatch(text)
    if not found:
        raise KPruneError(
            f"--fail-on {shown(text)} cannot be read; expected worse, or NAME OPERATOR NUMBER "
            'such as "stability<0", "stability<-2pp", "latency.decode_ratio<1.5" or, to fail in '
            'doubt as well, "stability<0?"'
        )
    number = float(found["number"]) / (100 if found["unit"] else 1)
    return Gate(text.strip(), found["name"], found["operator"], number, bool(found["doubt"]))


def check_gates(
    gates: Sequence[Gate],
    known: Mapping[str, Collection[str] | None],
    sides: Sequence[str] = (),
) -> None:
    """Refuse names that cannot occur in the report, before any work is done.

    `known` maps the suites of this run to the names (or shell patterns) of their possible metrics,
    or to None if they are not known in advance. Metrics of such a suite are accepted only as
    `suite.metric`, so that a misspelt suite is not mistaken for one of them. `sides` are the names
    of the pruned sides if there are several.
    """
    for gate in gates:
        if not possible(without_side(gate.name, sides)[0], known):
            raise KPruneError(f"--fail-on {gate.text}: {unknown(gate.name, known)}")


def check_margins(margins: Sequence[Margin], suites: Sequence[Suite]) -> None:
    """Refuse margins of names that these suites do not have, before any work is done."""
    known = {one.name: None if "*" in one.metrics else one.metrics for one in suites}
    for margin in margins:
        if not possible(margin.name, known):
            raise KPruneError(f"--margin {margin.text}: {unknown(margin.name, known)}")


def possible(name: str, known: Mapping[str, Collection[str] | None]) -> bool:
    """Whether a condition's name can occur; `known` as in `check_gates`."""
    if not name:  # `worse` is about whatever the report has
        return True
    suite, _, metric = name.partition(".")
    if name in known:
        return True
    if suite in known:
        patterns = known[suite]
        return patterns is None or _matches(metric, patterns)
    return any(_matches(name, patterns or ()) for patterns in known.values())


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def unknown(name: str, known: Mapping[str, Collection[str] | None]) -> str:
    """What is wrong with a name that is not possible, with the nearest that is."""
    names = {f"{suite}.{metric}" for suite, metrics in known.items() for metric in metrics or ()}
    return f"no such suite or metric in this run; {nearest(name, {*known, *names})}"


def without_side(name: str, sides: Sequence[str]) -> tuple[str, str]:
    """A gate's name without the pruned side that it names, and that side."""
    for side in sides:
        if name.endswith(f"@{side}"):
            return name.removesuffix(f"@{side}"), side
        suite, found, metric = name.partition(f"@{side}.")
        if found:
            return f"{suite}.{metric}", side
    return name, ""
