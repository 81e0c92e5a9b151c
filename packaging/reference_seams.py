"""Reference page of the names of vLLM that kprune uses, from the table in `serving/compat`."""

from collections.abc import Iterator, Mapping

from reference_options import cell, code

from vllm_kprune.serving.compat.features import FEATURES
from vllm_kprune.serving.compat.seams import seam_rows
from vllm_kprune.serving.compat.version import TESTED

INTRODUCTION = """\
# vLLM seams

Every name of vLLM that kprune relies on. kprune is checked with vLLM {tested}. Outside that range a
server that asks for kprune is refused, unless `VLLM_KPRUNE_ALLOW_UNTESTED_VLLM=1` is set. A server
that does not ask for kprune starts with any version.

If a name is missing, or its signature has changed, only the features in its row are off.

## Features

{features}

## Names

{names}
"""


def seams_page() -> str:
    """The tested range, and the table."""
    return INTRODUCTION.format(
        tested=TESTED, features="\n".join(_features()), names="\n".join(_names())
    )


def _features() -> Iterator[str]:
    yield "| feature | without it, a server that asked for it | instead |"
    yield "|---|---|---|"
    for feature in FEATURES:
        without = "stops at start" if feature.essential else "starts, with a warning"
        yield f"| {feature.name} | {without} | {cell(feature.otherwise)} |"


def _names() -> Iterator[str]:
    """A table for each set of features, in the order of the seams."""
    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in seam_rows():
        groups.setdefault(row["feature"], []).append(row)
    everything = ", ".join(feature.name for feature in FEATURES)
    for features, rows in groups.items():
        yield f"### {'every feature' if features == everything else features}\n"
        yield "| name | relied on | lost without it | then | versions |"
        yield "|---|---|---|---|---|"
        yield from (_name(row) for row in rows)
        yield ""


def _name(row: Mapping[str, str]) -> str:
    places = " or ".join(code(place) for place in row["name"].split(" or "))
    relied_on = f"{row['use']} {code(row['relied on'])}"
    texts = (row["lost without it"], row["without it"], row["versions"])
    return f"| {' | '.join([places, relied_on, *map(cell, texts)])} |"
