"""`kprune analyze` as a user types it: results, page, and each mistake on one line with exit 2."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.analyze_cases import prune_by_magnitude, write_texts
from support.command import command_runner
from support.tiny_folders import edit

from vllm_kprune.analyze.run import _names
from vllm_kprune.errors import KPruneError

Saved = Callable[[str], Path]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `kprune analyze …`; gives exit code, standard output and error."""
    return command_runner(capsys, "analyze")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that name the texts."""
    paths = write_texts(tmp_path_factory.mktemp("texts"))
    return [word for language, path in paths.items() for word in ("--text", f"{language}={path}")]


@pytest.fixture(scope="module")
def pruned(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two prunings of a small model, as if calibrated in Korean."""
    folder = tmp_path_factory.mktemp("pruned")
    made = [prune_by_magnitude(saved("gemma3-text"), folder / f"half-{n}", n / 4) for n in (1, 2)]
    for one in made:
        path = one / "kprune-sparsity.json"
        record = json.loads(path.read_text("utf-8")) | {"calibration": [{"language": "ko"}]}
        path.write_text(json.dumps(record), encoding="utf-8")
    return made


@pytest.mark.slow
def test_perplexity(
    run: Command, saved: Saved, pruned: list[Path], texts: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    code, out, err = run(
        "perplexity", saved("gemma3-text"), *pruned, *texts, "--length", 64, "--json", "-",
        "--html", page,
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert [one["name"] for one in document["models"]] == ["gemma3-text", "half-1", "half-2"]
    assert [one["calibration"] for one in document["models"]] == ["", "ko", "ko"]
    bits = document["models"][0]["languages"]["ko"]["bits_per_character"]
    assert bits["interval"][0] < bits["value"] < bits["interval"][1]
    assert document["signal_to_noise"].keys() == {"ko"}
    assert document["settings"]["text"]["ko"][0]["file"] == "ko.txt"
    html = page.read_text("utf-8")
    for expected in ("Bits per character", "Signal-to-noise ratio", "half-2", "Text: en en.txt"):
        assert expected in html
    code, out, err = run("perplexity", saved("gemma3-text"), *texts, "--length", 64)
    assert (code, out) == (0, "") and "bits/character" in err


def test_masks(run: Command, pruned: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, out, err = run("masks", *pruned, "--json", "-", "--html", page)
    assert code == 0, err
    document = json.loads(out)
    assert document["pairs"][0]["iou"] == pytest.approx(0.5, abs=0.01)
    assert document["languages"] == {"names": ["ko"], "iou": [[document["pairs"][0]["iou"]]]}
    assert "IoU by matrix and layer" in page.read_text("utf-8")
    code, out, err = run("masks", f"de={pruned[0]}", pruned[1], "--html", page)
    assert code == 0 and "by chance" in err
    assert "Mean IoU of two languages" in page.read_text("utf-8")


@pytest.mark.parametrize("what", ["features", "neurons"])
@pytest.mark.slow
def test_features_and_neurons(
    run: Command, saved: Saved, pruned: list[Path], texts: list[str], tmp_path: Path, what: str
) -> None:
    page = tmp_path / "page.html"
    command = (what, saved("gemma3-text"), *pruned, *texts)
    code, out, err = run(*command, "--length", 40, "--json", "-", "--html", page)
    assert code == 0, err
    document = json.loads(out)
    assert list(document["pruned"]) == ["half-1", "half-2"]
    if what == "features":
        first, second = (document["pruned"][name]["agnostic"][1] for name in document["pruned"])
        # More zeros, more change, in both languages.
        assert all(a < b for a, b in zip(first["relative"], second["relative"], strict=True))
        assert "Language-specific features" in page.read_text("utf-8")
    else:
        assert document["pruned"]["half-1"]["neurons"] == 96
        assert "ko: activation probability" in page.read_text("utf-8")
    code, out, err = run(*command)
    assert (code, out) == (0, "") and "half-2" in err


def test_a_folder_of_another_model_is_refused(
    run: Command, saved: Saved, texts: list[str], tmp_path: Path
) -> None:
    code, _, err = run("features", saved("gemma3-text"), saved("llama-3.2"), *texts)
    assert code == 2 and "llama-3.2 has another shape or tokenizer than gemma3-text" in err
    code, _, err = run("masks", saved("gemma3-text"), saved("qwen3-moe"))
    assert code == 2 and "qwen3-moe has other matrices than gemma3-text" in err


def test_what_has_no_weights_to_analyse_is_refused(
    run: Command, saved: Saved, texts: list[str], tmp_path: Path
) -> None:
    overlay = Path(shutil.copytree(saved("llama-3.2"), tmp_path / "overlay"))
    (overlay / "kprune.json").write_text("{}")
    quantised = Path(shutil.copytree(saved("llama-3.2"), tmp_path / "quantised"))
    edit(quantised / "config.json", quantization_config={"quant_method": "fp8"})
    for folder, message in ((overlay, "kprune export"), (quantised, "is quantised")):
        model = saved("llama-3.2")
        for words in (("perplexity", folder), ("neurons", model, folder), ("masks", folder)):
            code, out, err = run(*words, *([] if words[0] == "masks" else texts))
            assert (code, out, len(err.splitlines())) == (2, "", 1) and message in err


def test_a_mixture_of_experts_is_watched(
    run: Command, saved: Saved, texts: list[str], tmp_path: Path
) -> None:
    folder = prune_by_magnitude(saved("qwen3-moe"), tmp_path / "sparse", 0.5)
    code, out, err = run("neurons", saved("qwen3-moe"), folder, *texts, "--json", "-")
    assert code == 0, err
    assert json.loads(out)["pruned"]["sparse"]["neurons"] == 2 * 4 * 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "no text is given; --text ko=FILE names one and its language"),
        (["--text", "{ko}"], "say its language, as in ko="),
        (["--text", "ko=none.txt"], "none.txt does not exist or is not a file"),
        (["--text", "kr={ko}"], "did you mean 'ko'?"),
        (["--text", "ko={empty}", "--text", "en={en}"], "empty.txt is empty"),
        (["--text", "ko={ko}"], "texts of at least two languages"),
        (["--text", "ko={ko}", "--text", "en={en}", "--length", "9999"], "more than the 512 pos"),
        (["--text", "ko={ko}", "--text", "en={en}", "--rank", "2"], "expected 1 to 1"),
        (["--text", "ko={ko}", "--html", "none/page.html"], "expected the name of a file in a"),
    ],
)
def test_mistakes_are_one_line(
    run: Command, saved: Saved, tmp_path: Path, change: list[str], message: str
) -> None:
    paths = {**write_texts(tmp_path), "empty": tmp_path / "empty.txt"}
    paths["empty"].write_text("\n \n")
    words = [word.format(**paths) for word in change]
    (tmp_path / "same").symlink_to(saved("llama-3.2"))
    code, out, err = run("features", saved("llama-3.2"), tmp_path / "same", *words)
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1 and message in errors[0]


def test_text_of_another_language_is_said(run: Command, saved: Saved, tmp_path: Path) -> None:
    paths = write_texts(tmp_path)
    code, _, err = run("perplexity", saved("llama-3.2"), "--text", f"en={paths['ko']}",
                       "--length", 64)  # fmt: skip
    assert code == 0
    assert re.search(r"warning: text .*ko\.txt: only 0% of 12 lines look like English", err)


def test_lines_of_no_language_are_named_so(run: Command, saved: Saved, tmp_path: Path) -> None:
    path = tmp_path / "marks.txt"
    path.write_text("1234 5678 91011 121314 +++ ///\n" * 9, encoding="utf-8")
    command = ("perplexity", saved("llama-3.2"), "--text", f"de={path}", "--length", 64)
    code, _, err = run(*command)
    assert code == 0
    assert "only 0% of 9 lines look like German (found: no language 100%)" in err


def test_a_model_that_does_not_fit_into_memory_is_refused(
    run: Command, saved: Saved, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_kprune.analyze import models

    monkeypatch.setattr(models, "available_memory", lambda: 1000)
    code, _, err = run("perplexity", saved("llama-3.2"), *texts)
    assert code == 2 and "GB in float32, but 0.0 GB are free" in err


def test_models_of_one_name_are_told_apart() -> None:
    assert _names(["a/x", "b/x", "c/y"]) == ["a/x", "b/x", "y"]
    with pytest.raises(KPruneError, match="a/x is given twice"):
        _names(["a/x", "a/x"])


def test_help_teaches(run: Command) -> None:
    for name in ("perplexity", "masks", "features", "neurons"):
        code, out, _ = run(name, "--help")
        assert code == 0 and f"kprune analyze {name}" in " ".join(out.split())
