"""Which figures of `v2_simulation.py` must be 0, and what a number above it means."""

from collections.abc import Mapping

__all__ = ["FAULTS", "faults"]

FAULTS = {
    "refused": "a token was committed that the judge refuses",
    "foreign_characters": "decoded answers have characters that the policy does not allow",
    "wrong_rows": "a committed row lost a token that is allowed, kept one that is not, or changed",
    "unguarded_rows": "a guarded request's row was sampled without any logits processor",
    "other_ends": "a dead end did not give the end token",
}


def faults(figures: Mapping[str, int]) -> dict[str, int]:
    """Those that are not 0."""
    return {name: figures[name] for name in FAULTS if figures.get(name)}
