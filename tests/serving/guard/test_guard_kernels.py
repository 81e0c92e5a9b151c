"""The guard's Triton kernels: what its reference does, in three launches a step."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "support" / "guard_step_pairs.py"
COMPILER = SCRIPT.with_name("guard_kernel_compiler.py")
STEPS = 15


@pytest.fixture(scope="module")
def found(
    triton_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What random batches contained, compared already, and the operations of a step's parts."""
    folder = tmp_path_factory.mktemp("engines")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(STEPS)],
        env=triton_environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_kernels_and_reference_agree_on_batches_that_are_not_harmless(
    found: dict[str, Any],
) -> None:
    kinds = ("byte_level", "byte_fallback")
    assert set(found["seen"]) == {f"{kind} {n}" for kind in kinds for n in (0, 1, 3)}
    for name, batches in found["seen"].items():
        for what in ("rows", "chunks", "changed", "withdrawn"):
            assert batches[what], (what, batches)
        assert (batches["accepted"] > 0) == (batches["drafts"] > 0) == (not name.endswith("0"))
    assert sum(batches["dead"] for batches in found["seen"].values()) > 3


@pytest.mark.parametrize("drafts", ["0", "3"])
def test_a_step_is_three_kernels_and_nothing_else(found: dict[str, Any], drafts: str) -> None:
    done = found["done"][drafts]
    assert done["step"] == ["advance_rows", "refuse_tokens", "settle_rows"]
    assert done["budget"] == ["withdraw_tokens"]
    assert done["leave"] == (["settle_slots"] if drafts != "0" else [])
    assert done["nobody enters"] == []
    # And one copy to the device, which on a CPU is none.
    assert done["known policies enter"] == ["aten.index_copy_"]
    # Another copy for each of three policies.
    assert done["new policies enter"] == [*["aten.copy_"] * 3, "aten.index_copy_"]


def test_a_gpus_compiler_takes_the_kernels(
    triton_environment: dict[str, str], tmp_path: Path
) -> None:
    environment = {**triton_environment, "TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    command = [sys.executable, str(COMPILER)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == 5
