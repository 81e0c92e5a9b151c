"""The one table of vLLM names that kprune relies on, with what is lost without each.

`installer` verifies and wraps them in a running vLLM, `packaging/check_vllm.py` holds them against
wheels, and `seam_rows` gives them to the documentation. A new use of vLLM starts with a row here; a
test fails on an import from vllm that has none. Only names and parameters are checked: that they
still mean the same is for the tests of `serving`, which run on one version.
"""

from collections.abc import Iterator

from vllm_kprune.serving.compat import (
    seams_engine,
    seams_guard,
    seams_head,
    seams_parsers,
    seams_prompts,
    seams_requests,
    seams_routes,
)
from vllm_kprune.serving.compat.seam import Seam

__all__ = ["SEAMS", "seam_rows"]

_PARTS = (
    seams_engine,
    seams_head,
    seams_requests,
    seams_routes,
    seams_guard,
    seams_parsers,
    seams_prompts,
)
# By type, so that a new row needs no second entry here.
SEAMS = tuple(value for part in _PARTS for value in vars(part).values() if isinstance(value, Seam))


def seam_rows() -> Iterator[dict[str, str]]:
    """The table as text, a row for each seam: for the documentation and `check_vllm.py`."""
    for seam in SEAMS:
        yield seam.as_row()
