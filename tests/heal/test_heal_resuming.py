"""A training that is killed goes on, and gives the same bytes as one that was not."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.child import script_environment
from support.heal_cases import heal_options
from support.tiny_folders import contents

from vllm_kprune.errors import KPruneError
from vllm_kprune.heal.run import heal_model
from vllm_kprune.heal.training import Training

pytestmark = pytest.mark.slow

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from support.heal_cases import heal_options
from vllm_kprune.heal import run, training
torch.set_num_threads(1)
run.draw_curve = lambda notes, path: None
model, output, text = map(Path, sys.argv[1:])
seen = []
update = training.Training._update
def update_and_die(*arguments):
    update(*arguments)
    seen.append(arguments)
    if len(seen) == 11:
        os.kill(os.getpid(), signal.SIGKILL)
training.Training._update = update_and_die
run.heal_model(model, output, heal_options(text))
"""


def test_a_killed_training_goes_on_and_other_options_are_refused(
    sparse: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    model, output, whole = sparse("llama-3.2"), tmp_path / "killed", tmp_path / "whole"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, model, output, text], env=script_environment(), check=False
    )
    assert done.returncode == -signal.SIGKILL
    unfinished = tmp_path / ".killed.unfinished"
    left = contents(unfinished)
    # After 11 of 16 steps, the state of step 10 is there.
    assert ".state-10.safetensors" in left and not output.exists()
    with pytest.raises(KPruneError, match=r"interrupted run with other options \(seed was 0, now"):
        heal_model(model, output, heal_options(text, seed=1))
    with pytest.raises(KPruneError, match=r"other options \(another texts\)"):
        changed = tmp_path / "other.txt"
        changed.write_bytes(text.read_bytes() + b"more of it\n")
        heal_model(model, output, heal_options(changed))
    assert contents(unfinished) == left
    watched: list[str] = []
    options = heal_options(text)
    heal_model(model, output, options, progress=lambda step, share: watched.append(step))
    assert watched.count("heal") == 6
    heal_model(model, whole, options)
    assert contents(output) == contents(whole)
    assert not unfinished.exists()


@pytest.mark.parametrize("what", ["lora", "embeddings"])
def test_a_stopped_training_goes_on(
    what: str,
    sparse: Callable[[str], Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, output, whole = sparse("llama-3.2"), tmp_path / "stopped", tmp_path / "whole"
    options, update, seen = heal_options(text, what=what, steps=8), Training._update, []

    def update_and_stop(self: Training, rate: float) -> None:
        update(self, rate)
        seen.append(rate)
        if len(seen) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Training, "_update", update_and_stop)
    with pytest.raises(KeyboardInterrupt):
        heal_model(model, output, options)
    assert not output.exists()
    heal_model(model, output, options)
    assert len(seen) == 5 + 4  # the fifth again
    heal_model(model, whole, options)
    assert contents(output) == contents(whole)


def test_force_starts_anew_and_replaces_only_what_heal_wrote(
    sparse: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    model, output = sparse("llama-3.2"), tmp_path / "out"
    heal_model(model, output, heal_options(text, steps=8))
    with pytest.raises(KPruneError, match="is not empty; name another folder, or use --force"):
        heal_model(model, output, heal_options(text, steps=9))
    record = heal_model(model, output, heal_options(text, steps=9), force=True)
    assert record["steps"] == 9
    with pytest.raises(KPruneError, match="has files that kprune did not make"):
        heal_model(output, model, heal_options(text), force=True)
