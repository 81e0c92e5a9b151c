"""The guard's Triton kernels do what its reference does: same logits, same counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "support" / "guard_step_pairs.py"
STEPS = 25


@pytest.fixture(scope="module")
def seen(
    triton_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, int]]:
    """What the batches contained, by tokenizer and number of drafts; they have been compared."""
    folder = tmp_path_factory.mktemp("engines")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(STEPS)],
        env=triton_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


def test_kernels_and_reference_agree(seen: dict[str, dict[str, int]]) -> None:
    assert set(seen) == {
        f"{kind} {n}" for kind in ("byte_level", "byte_fallback") for n in (0, 1, 3)
    }


def test_the_batches_were_not_harmless(seen: dict[str, dict[str, int]]) -> None:
    for what in ("rows", "chunks", "changed", "dead", "withdrawn"):
        assert all(batches[what] for batches in seen.values()), (what, seen)
    for name, batches in seen.items():
        assert (batches["accepted"] > 0) == (batches["drafts"] > 0) == (not name.endswith("0")), (
            seen
        )
