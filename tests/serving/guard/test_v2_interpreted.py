"""The guard in vLLM's own V2 sampler, on the CPU: vLLM's kernels are interpreted.

`support/v2_simulation.py` runs random requests in a process with Triton; here its figures are
looked at. `make check-v2` runs more of them, and on other releases of vLLM.
"""

import json
from collections import Counter
from typing import Any

import pytest
from support.child import run_script
from support.v2_figures import faults

pytestmark = pytest.mark.slow

STEPS, SEED = 11, 1

Runs = list[dict[str, Any]]


@pytest.fixture(scope="module")
def runs(triton_environment: dict[str, str]) -> Runs:
    found: Runs = json.loads(
        run_script("v2_simulation.py", STEPS, SEED, environment=triton_environment)
    )
    return found


def test_no_refused_token_is_committed(runs: Runs) -> None:
    assert [faults(run["figures"]) for run in runs] == [{}] * len(runs)


def test_the_requests_were_of_all_kinds(runs: Runs) -> None:
    # Dead ends are too rare for so few steps: `make check-v2` has some.
    figures = sum((Counter(run["figures"]) for run in runs), Counter[str]())
    least = {
        **{"tokens": 200, "inside_a_character": 40, "while_reasoning": 40, "preemptions": 5},
        **{"drafts": 75, "accepted": 25, "chunks": 4},
    }
    assert {name: n for name, n in least.items() if figures[name] < n} == {}


def test_committed_rows_are_counted_and_no_others(runs: Runs) -> None:
    for run in runs:
        assert run["counts"] == run["expected_counts"], run


def test_warm_up_is_not_counted(runs: Runs) -> None:
    assert [run["warm_up_counts"] for run in runs] == [{}] * len(runs)
