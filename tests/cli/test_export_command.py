"""build --export and export as a user types them, good input and bad."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_kprune.checkpoint import verify_weights
from vllm_kprune.tokenizer.bpe import read_tokenizer

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str, str]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_both_ways_to_export_give_the_same_files(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    built = ("build", model, "--profile", profile)
    one_step, overlay, export = (tmp_path / name for name in ("one", "overlay", "export"))
    code, out, err = run(*built, "-o", one_step, "--export", "--verify", "--json", "-")
    assert code == 0, err
    figures = json.loads(out)
    assert run(*built, "-o", overlay)[0] == 0
    code, out, err = run("export", overlay, "-o", export, "--verify", "--json", "-")
    assert code == 0, err
    assert contents(one_step) == contents(export)
    shown = json.loads(out)
    assert shown.pop("output") == str(export)
    assert shown == figures["export"]
    assert shown["rows"]["kept"] == len(read_tokenizer(export).tokens) < shown["rows"]["original"]
    assert shown["weight_bytes"]["export"] == (export / "model.safetensors").stat().st_size
    assert shown["weight_bytes"]["export"] < shown["weight_bytes"]["original"]
    assert shown["shards"] == {"rewritten": ["model.safetensors"], "copied": [], "linked": []}
    assert run("verify", export)[0] == 0


@pytest.mark.parametrize("command", ["build", "export"])
def test_the_next_step_is_plain_vllm(
    run: Command, model: Path, profile: Path, tmp_path: Path, command: str
) -> None:
    assert run("build", model, "--profile", profile, "-o", tmp_path / "overlay")[0] == 0
    words = {
        "build": ("build", model, "--profile", profile, "--export"),
        "export": ("export", tmp_path / "overlay"),
    }
    code, _, err = run(*words[command], "-o", tmp_path / "export")
    assert code == 0
    assert err.rstrip().endswith(f"vllm serve {tmp_path / 'export'}")
    assert "weights" in err


@pytest.mark.parametrize("command", ["build", "export"])
def test_a_broken_law_keeps_nothing(
    run: Command,
    model: Path,
    profile: Path,
    tmp_path: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As if a bit had been lost on the way to the disk."""
    assert run("build", model, "--profile", profile, "-o", tmp_path / "overlay")[0] == 0
    words = {
        "build": ("build", model, "--profile", profile, "--export"),
        "export": ("export", tmp_path / "overlay"),
    }
    read_shard = verify_weights.read_shard

    def lose_a_bit(path: Path) -> object:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return read_shard(path)

    monkeypatch.setattr(verify_weights, "read_shard", lose_a_bit)
    code, out, err = run(*words[command], "-o", tmp_path / "export", "--verify")
    assert code == 1
    assert "law 4" in out and "BROKEN" in out and "model.safetensors: " in out
    assert "nothing was kept" in err
    assert not (tmp_path / "export").exists()


def test_verify_without_export_checks_the_overlay(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert run("build", model, "--profile", profile, "-o", output, "--verify")[0] == 0
    assert (output / "kprune.json").is_file()


def test_mistakes_are_one_line(run: Command, model: Path, profile: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    built = ("build", model, "--profile", profile)
    for words, said in [
        (("export", model, "-o", output), "kprune build"),
        (("export", tmp_path / "nowhere", "-o", output), "no kprune.json"),
        ((*built, "-o", output, "--link"), "--link is about the weights"),
        ((*built, "-o", model, "--export", "--force"), "did not make"),
    ]:
        code, out, err = run(*words)
        assert (code, out) == (2, ""), words
        assert said in err and err.count("\n") == 1 and err.startswith("error: ")
        assert not output.exists()


def test_force_replaces_what_kprune_made(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    built = ("build", model, "--profile", profile, "-o", tmp_path / "out")
    assert run(*built)[0] == 0
    assert run(*built, "--export")[0] == 2
    assert run(*built, "--export", "--force")[0] == 0
    assert run(*built, "--export", "--force")[0] == 0
    code, _, err = run(*built, "--force")  # an overlay does not replace weights
    assert code == 2 and "did not make" in err
    again = ("build", tmp_path / "out", "--profile", profile, "-o", tmp_path / "out")
    code, _, err = run(*again, "--export", "--force")
    assert code == 2 and "is the base model itself" in err


# Stops for a minute where the first weights are read.
_EXPORT = """
import sys, time
from vllm_kprune.checkpoint import export
from vllm_kprune.cli import main

def write_cut(shard, cut, target, advance):
    target.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)

export.write_cut = write_cut
main(["export", sys.argv[1], "-o", sys.argv[2]])
"""


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_an_export_that_is_stopped_leaves_nothing_that_looks_finished(
    run: Command, model: Path, profile: Path, tmp_path: Path, how: signal.Signals, code: int
) -> None:
    overlay, output = tmp_path / "overlay", tmp_path / "export"
    assert run("build", model, "--profile", profile, "-o", overlay)[0] == 0
    with subprocess.Popen(
        [sys.executable, "-c", _EXPORT, overlay, output],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout and process.stdout.readline() == "writing\n"
        process.send_signal(how)
        _, said = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in said
    assert not output.exists()
    halves = list(tmp_path.glob(".export.kprune-*/new/model.safetensors"))
    assert len(halves) == (1 if how == signal.SIGKILL else 0)
    assert run("export", overlay, "-o", output, "--verify")[0] == 0  # sweeps
    assert not list(tmp_path.glob(".export.kprune-*"))
