"""`kprune heal` as a user types it: what it says, and each mistake on one line with exit 2."""

import json
import shutil
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import command_runner
from support.tiny_quantised import quantise

from vllm_kprune.heal import picture

Saved = Callable[[str], Path]
Command = Callable[..., tuple[int, str, str]]
SHORT = ("--steps", 8, "--length", 32, "--learning-rate", 5e-3, "--device", "cpu")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run `kprune heal MODEL -o out …`; gives exit code, standard output and error."""
    return command_runner(capsys, "heal", "-o", tmp_path / "out", *SHORT)


@pytest.fixture
def refused(run: Command, tmp_path: Path) -> Callable[..., str]:
    """Run the command with a mistake; gives its one line, after checking that nothing was left."""

    def run_refused(model: Path, *arguments: object) -> str:
        code, out, err = run(model, *arguments)
        assert (code, out) == (2, ""), err
        (line,) = (line for line in err.splitlines() if not line.startswith("warning: "))
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / ".out.unfinished").exists()
        return line.removeprefix("error: ")

    return run_refused


@pytest.mark.slow
def test_a_run_shows_what_was_gained(
    run: Command, sparse: Saved, text: Path, tmp_path: Path
) -> None:
    model = sparse("qwen2-tied")
    code, out, err = run(model, "--text", f"ko={text}", "--json", "-")
    assert code == 0, err
    record = json.loads(out)
    assert record["output"] == str(tmp_path / "out")
    assert record["texts"][0]["language"] == "ko"
    assert "lines look like Korean (found: " in err
    code, out, err = run(model, "--text", text, "--force", "--what", "embeddings")
    assert code == 0, err
    assert "bits per character" in err and "21,504 in 14 matrices" in err
    assert "next:  vllm serve" in err and "kprune-heal.svg" in err


def test_what_a_model_can_be_that_is_refused(
    refused: Callable[..., str], sparse: Saved, saved: Saved, text: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(sparse("llama-3.2"), tmp_path / "model"))
    (model / "kprune.json").write_text("{}")
    line = refused(model, "--text", text)
    assert "is an overlay, which has no weights of its own" in line and "kprune export" in line
    quantised = quantise(Path(shutil.copytree(saved("qwen2-tied"), tmp_path / "int8")), "int8")
    line = refused(quantised, "--text", text)
    assert "(compressed-tensors); heal the unquantised checkpoint" in line
    assert "name the original with --teacher" in refused(saved("llama-3.2"), "--text", text)
    (model / "kprune.json").unlink()
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    line = refused(model, "--text", text, "--distillation", 0)
    assert line.startswith("the model gives NaN or infinity for the text of mixed.txt")


def test_what_options_do_not_go_together(
    refused: Callable[..., str], sparse: Saved, text: Path
) -> None:
    model = sparse("llama-3.2")
    assert refused(model) == "healing needs a text: --text FILE, or ko=FILE"
    line = refused(model, "--languages", "ko,en")
    assert line == (
        "--languages ko,en: kprune ships word lists but no running text; give a text of each "
        "language: --text ko=FILE --text en=FILE"
    )
    assert "both say when to end" in refused(model, "--text", text, "--minutes", 1)
    line = refused(model, "--text", text, "--keep-within", "en")
    assert line == "--keep-within en: expected a language and a percentage: en=1%"
    line = refused(model, "--text", f"ko={text}", "--keep-within", "en=1%")
    assert line.startswith("--keep-within en: no held-out text has this name; give --held-out en=F")
    line = refused(model, "--text", f"ko={text}", "--languages", "korean")
    assert "did you mean 'ko'? (known: ko)" in line


def test_what_a_text_can_be_that_is_refused(
    refused: Callable[..., str], sparse: Saved, tmp_path: Path
) -> None:
    model, file = sparse("llama-3.2"), tmp_path / "file.txt"
    assert "text nothing.txt does not exist" in refused(model, "--text", "nothing.txt")
    assert "did you mean 'ko'" in refused(model, "--text", "kr=nothing.txt")
    file.write_text("\n\n")
    assert "--held-out ko=x: x does not exist" in refused(
        model, "--text", file, "--held-out", "ko=x"
    )
    assert "has no text" in refused(model, "--text", file)
    file.write_text("a few words, not more")
    line = refused(model, "--text", file)
    assert "give more text, or lower --length" in line
    file.write_text("a few words more, " * 50)
    assert "long enough to hold a part of it out" in refused(model, "--text", file)
    file.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in refused(model, "--text", file)


def test_not_enough_memory_or_disk_names_what_needs_less(
    refused: Callable[..., str], sparse: Saved, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = (sparse("llama-3.2"), "--text", text)
    line = refused(*model, "--memory", 1e-3)
    assert line.startswith("healing needs about 0.4")
    assert "0.00 GB may be used; give more, or try --length 16 (" in line
    assert "--what embeddings (" in line and "--distillation 0 (" in line
    usage = namedtuple("usage", "total used free")(1, 1, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert "of disk, but 0.00 GB are free; make room" in refused(*model)


def test_a_library_that_is_missing_is_named_before_anything_is_read(
    refused: Callable[..., str], sparse: Saved, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    line = refused(sparse("llama-3.2"), "--text", text, "--what", "lora")
    assert line == "--what lora needs peft; pip install 'vllm-kprune[heal]', or use --what all"
    monkeypatch.setattr(picture, "_LIBRARIES", ("no_such_library",))
    line = refused(sparse("llama-3.2"), "--text", text)
    assert "needs no_such_library, which is not installed: pip install 'vllm-kprune[heal]'" in line


def test_the_output_is_not_one_of_the_models(
    run: Command, sparse: Saved, text: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(sparse("llama-3.2"), tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    code, _, err = run(model, "--text", text, "--force")
    assert code == 2 and "is the base model itself; name another folder" in err
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
