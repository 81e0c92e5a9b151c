"""`kprune sparsify` as a user types it: what it says, and each mistake on one line with exit 2."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command import command_runner
from support.tiny_architectures import ARCHITECTURES, TinyArchitecture
from support.tiny_folders import edit
from support.tiny_quantised import quantise

from vllm_kprune.errors import KPruneError
from vllm_kprune.sparsify.body import open_body
from vllm_kprune.sparsify.calibration import identified_languages, parse_calibration

Saved = Callable[[str], Path]
Command = Callable[..., tuple[int, str, str]]
SHORT = ("--samples", 4, "--length", 16, "--device", "cpu")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run `kprune sparsify MODEL -o out …`; gives exit code, standard output and error."""
    return command_runner(capsys, "sparsify", "-o", tmp_path / "out", *SHORT)


@pytest.fixture
def refused(run: Command, tmp_path: Path) -> Callable[..., str]:
    """Run the command with a mistake; gives its one line, after checking that nothing was left."""

    def run_refused(model: Path, *arguments: object, left_behind: bool = False) -> str:
        code, out, err = run(model, *arguments)
        assert (code, out) == (2, ""), err
        (line,) = err.splitlines()
        assert not (tmp_path / "out").exists()
        assert left_behind or not (tmp_path / ".out.unfinished").exists()
        return line.removeprefix("error: ")

    return run_refused


@pytest.fixture
def copy(saved: Saved, tmp_path: Path) -> Callable[[str], Path]:
    """A function that gives a copy of a tiny architecture, to be damaged."""
    return lambda name: Path(shutil.copytree(saved(name), tmp_path / name))


@pytest.mark.slow
def test_a_run_shows_the_zeros_and_says_that_no_time_is_saved(
    run: Command, saved: Saved, text: Path, tmp_path: Path
) -> None:
    code, out, err = run(
        saved("qwen2-tied"), "--calibration", f"ko={text}", "--sparsity", 0.25, "--json", "-"
    )
    assert code == 0, err
    record = json.loads(out)
    assert record["output"] == str(tmp_path / "out")
    assert record["sparsity"] == pytest.approx(0.25)
    assert [file["language"] for file in record["calibration"]] == ["ko"]
    assert "only" in err and "lines look like Korean (found: " in err
    code, out, err = run(saved("qwen2-tied"), "--method", "magnitude", "--force")
    assert code == 0, err
    assert "magnitude, 0.5" in err and "50.0%" in err and "next:  vllm serve" in err
    code, out, err = run(saved("qwen2-tied"), "--help")
    assert "No time is saved in vLLM 0.32" in " ".join(out.split())


@pytest.mark.slow
def test_what_a_model_can_be_that_is_refused(
    refused: Callable[..., str], copy: Callable[[str], Path], tmp_path: Path
) -> None:
    magnitude = ("--method", "magnitude")
    model = copy("llama-3.2")
    (model / "kprune.json").write_text("{}")
    assert "is an overlay, which has no weights of its own" in refused(model, *magnitude)
    (model / "kprune.json").unlink()
    edit(model / "config.json", architectures=["MambaForCausalLM"])
    assert "does not know the family MambaForCausalLM" in refused(model, *magnitude)
    edit(model / "config.json", architectures=["LlamaForCausalLM"], num_hidden_layers=3)
    assert "tensors of 2 layers, but config.json says 3" in refused(model, *magnitude)
    edit(model / "config.json", num_hidden_layers=2, intermediate_size=40)
    assert "has the shape [48, 64], expected [40, 64]" in refused(model, *magnitude)
    assert "(compressed-tensors); sparsify the unquantised checkpoint" in refused(
        quantise(copy("qwen2-tied"), "int8"), *magnitude
    )
    odd = TinyArchitecture(
        "LlamaForCausalLM", "LlamaConfig", "byte_level", True, 0, {"intermediate_size": 42}
    ).save(tmp_path / "odd")
    line = refused(odd, *magnitude, "--pattern", "2:4")
    assert "mlp.down_proj has 42 inputs, which the groups of 4 of --pattern 2:4 do not" in line


@pytest.mark.slow
def test_what_a_calibration_can_be_that_is_refused(
    refused: Callable[..., str], saved: Saved, text: Path, tmp_path: Path
) -> None:
    model = saved("llama-3.2")
    assert "--method wanda needs a text" in refused(model)
    assert "looks at no text" in refused(model, "--method", "magnitude", "--calibration", text)
    line = refused(model, "--calibration", "ko,en")
    assert "no running text; give a text of each language: --calibration ko=FILE --cal" in line
    assert "did you mean 'ko'" in refused(model, "--calibration", f"kr={text}")
    assert "does not exist" in refused(model, "--calibration", "nothing.txt")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    assert "has no text" in refused(model, "--calibration", empty)
    empty.write_text("a few words, not more")
    line = refused(model, "--calibration", empty)
    assert "tokens, but 4 samples need 60; give more text, or lower --samples or --length" in line
    assert "more than the 512 positions" in refused(model, "--calibration", text, "--length", 513)
    assert "less than one for each of 2" in refused(
        model, "--calibration", text, "--calibration", f"en={text}", "--samples", 1
    )


def test_not_enough_memory_or_disk_names_what_needs_less(
    refused: Callable[..., str], saved: Saved, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated = (saved("llama-3.2"), "--calibration", text)
    line = refused(*calibrated, "--memory", 1e-5, "--method", "sparsegpt")
    assert "of memory, --memory is 0.01 MB; give more, or try a lower --length or" in line
    usage = namedtuple("usage", "total used free")(1, 1, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert "of disk, but 0.00 MB are free; make room" in refused(*calibrated)


@pytest.mark.parametrize("tensor", ["layers.1.self_attn.v_proj", "layers.0.mlp.up_proj"])
def test_nan_in_the_weights_is_named(
    refused: Callable[..., str], copy: Callable[[str], Path], text: Path, tensor: str
) -> None:
    model = copy("llama-3.2")
    weights = load_file(model / "model.safetensors")
    weights[f"model.{tensor}.weight"][0, 0] = torch.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    line = refused(model, "--calibration", text, left_behind=True)
    layer = tensor.split(".")[1]
    assert line.startswith(f"layer {layer}") and "NaN or infinity" in line


def test_text_in_no_language_is_warned_of() -> None:
    told: list[str] = []
    assert identified_languages("this", "ko", ["0123456789 " * 5], told.append) == {"": 1.0}
    assert told == ["this: only 0% of 1 lines look like Korean (found: no language 100%)"]


def test_a_file_may_be_named_like_a_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ko", "a=b.txt"):
        Path(name).write_text("text")
        (file,) = parse_calibration([name])
        assert (file.path, file.language) == (Path(name), None)


def test_a_family_whose_experts_are_not_understood_is_refused(tmp_path: Path) -> None:
    model = ARCHITECTURES["gpt-oss"].save(tmp_path / "model")
    with pytest.raises(KPruneError, match=r"cannot heal GptOssForCausalLM: its experts are fused"):
        open_body(model, work="heal")
