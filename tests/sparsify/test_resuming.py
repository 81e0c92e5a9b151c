"""A run that is killed in the middle of a layer goes on, and gives the same bytes."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.child import script_environment
from support.sparsify_cases import small_options
from support.tiny_architectures import ARCHITECTURES
from support.tiny_folders import contents

from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.record import NOTES_NAME
from vllm_kprune.sparsify.run import sparsify_model

# Killed after one layer of seven matrices, and two matrices of the next.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from support.sparsify_cases import small_options
from vllm_kprune.sparsify import run
torch.set_num_threads(1)
os.fsync = lambda handle: None
written, write = [], run.write_tensor
def write_and_die(*arguments):
    write(*arguments)
    written.append(arguments)
    if len(written) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
run.write_tensor = write_and_die
model, output, text = map(Path, sys.argv[1:])
run.sparsify_model(model, output, small_options("sparsegpt", text))
"""


def test_a_killed_run_goes_on_and_other_options_are_refused(text: Path, tmp_path: Path) -> None:
    # In bfloat16, where what is stored differs from what was calculated.
    model = ARCHITECTURES["gemma3-text"].save(tmp_path / "model", "bfloat16")
    output, whole = tmp_path / "killed", tmp_path / "whole"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, model, output, text], env=script_environment(), check=False
    )
    assert done.returncode == -signal.SIGKILL
    unfinished = tmp_path / ".killed.unfinished"
    assert not output.exists()
    left = contents(unfinished)
    assert NOTES_NAME in left
    with pytest.raises(KPruneError, match=r"interrupted run with other options \(seed was 0, now"):
        sparsify_model(model, output, small_options("sparsegpt", text, seed=1))
    with pytest.raises(KPruneError, match=r"method was 'sparsegpt', now 'wanda'"):
        sparsify_model(model, output, small_options("wanda", text))
    assert contents(unfinished) == left
    watched: list[tuple[str, float]] = []
    sparsify_model(
        model,
        output,
        small_options("sparsegpt", text),
        progress=lambda step, share: watched.append((step, share)),
    )
    # The first layer only passes the text on, the second is pruned: half as often again.
    assert len([step for step, _ in watched if step == "sparsify layers"]) == 12 + 2
    sparsify_model(model, whole, small_options("sparsegpt", text))
    assert contents(output) == contents(whole)
    assert not unfinished.exists()


def test_force_starts_anew_and_replaces_only_what_kprune_wrote(
    saved: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    model, output = saved("llama-3.2"), tmp_path / "out"
    first = sparsify_model(model, output, small_options("magnitude", text))
    with pytest.raises(KPruneError, match="is not empty; name another folder, or use --force"):
        sparsify_model(model, output, small_options("magnitude", text, sparsity=0.25))
    options = small_options("magnitude", text, sparsity=0.25)
    second = sparsify_model(model, output, options, force=True)
    assert second["zeros"] * 2 == first["zeros"]
    with pytest.raises(KPruneError, match="has files that kprune did not make"):
        sparsify_model(output, model, options, force=True)
