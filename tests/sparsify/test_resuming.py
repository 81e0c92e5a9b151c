"""A run that is killed in the middle of a layer goes on, and gives the same bytes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.forks import run_forked
from support.sparsify_cases import small_options
from support.tiny_architectures import ARCHITECTURES
from support.tiny_folders import contents

from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify import run
from vllm_kprune.sparsify.body import write_tensor
from vllm_kprune.sparsify.record import NOTES_NAME
from vllm_kprune.sparsify.run import sparsify_model

pytestmark = pytest.mark.slow


def killed(arguments: tuple[Path, Path, Path]) -> None:
    """Sparsify in a fork, killed after one layer of seven matrices, and two of the next."""
    model, output, text = arguments
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not in the fork
    written: list[object] = []

    def write_and_die(*place_and_values: Any) -> None:
        write_tensor(*place_and_values)
        written.append(place_and_values)
        if len(written) == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    run.write_tensor = write_and_die  # type: ignore[assignment]
    sparsify_model(model, output, small_options("sparsegpt", text))


def test_a_killed_run_goes_on_and_other_options_are_refused(text: Path, tmp_path: Path) -> None:
    # In bfloat16, where what is stored differs from what was calculated.
    model = ARCHITECTURES["gemma3-text"].save(tmp_path / "model", "bfloat16")
    output, whole = tmp_path / "killed", tmp_path / "whole"
    (ended,) = run_forked(killed, [(model, output, text)])
    assert os.WTERMSIG(ended.status) == signal.SIGKILL, ended.text
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
