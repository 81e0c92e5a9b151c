"""build, inspect and verify as a user types them, good input and bad."""

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_kprune import __version__
from vllm_kprune.tokenizer.bpe import read_tokenizer

Command = Callable[..., tuple[int, str, str]]


def built(run: Command, model: Path, profile: Path, output: Path, *more: object) -> dict[str, Any]:
    code, out, err = run("build", model, "--profile", profile, "-o", output, "--json", "-", *more)
    assert code == 0, err
    figures: dict[str, Any] = json.loads(out)
    return figures


def test_help_names_every_command(run: Command) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("build", "inspect", "verify", "demo", "demo-model"):
        assert command in out


def test_version_is_printed(run: Command) -> None:
    assert run("--version") == (0, f"kprune {__version__}\n", "")


@pytest.mark.slow
def test_build_reports_what_it_wrote(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    figures = built(run, model, profile, output)
    tokens = read_tokenizer(output).tokens
    assert figures["tokens"]["kept"] == len(tokens) < figures["tokens"]["original"]
    assert sum(figures["by_reason"].values()) == len(tokens)
    assert figures["overlay_bytes"] == sum(path.stat().st_size for path in output.iterdir())
    row_bytes = figures["vocabulary_bytes"]["original"] / len(read_tokenizer(model).tokens)
    assert figures["vocabulary_bytes"]["kept"] == len(tokens) * row_bytes


def test_build_without_json_tells_the_next_steps(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    code, _, err = run("build", model, "--profile", profile, "-o", tmp_path / "out")
    assert code == 0
    assert "kprune verify" in err and "vllm serve" in err


@pytest.mark.slow
def test_target_size_is_kept_exactly(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    least = built(run, model, profile, tmp_path / "a")["tokens"]["kept"]
    figures = built(run, model, profile, tmp_path / "b", "--target-size", least)
    assert figures["tokens"]["kept"] == least


@pytest.mark.slow
def test_verify_holds_on_what_build_made(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    built(run, model, profile, tmp_path / "out")
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "오늘 날씨가 좋다"}\n{"text": "中国 Привет 😀"}\n', encoding="utf-8")
    code, out, err = run("verify", tmp_path / "out", "--text", text, "--json", "-")
    results = json.loads(out)
    assert code == 0, err
    assert [(r["law"], r["holds"]) for r in results] == [(n, True) for n in (1, 2, 3, 5, 6)]
    assert [r["checked"] for r in results if r["law"] == 2] == [2]


@pytest.mark.slow
def test_verify_without_text_checks_word_lists(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    built(run, model, profile, tmp_path / "out")
    code, out, _ = run("verify", tmp_path / "out", "--json", "-")
    assert code == 0
    assert next(r["checked"] for r in json.loads(out) if r["law"] == 2) > 100


@pytest.mark.slow
def test_verify_shows_the_first_counter_example(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    """A merge is lost behind the manifest's back: covered text is encoded to other tokens."""
    output = tmp_path / "out"
    built(run, model, profile, output)
    path = output / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["merges"] = []
    path.write_text(json.dumps(data), encoding="utf-8")
    reseal(output)
    text = tmp_path / "text.txt"
    text.write_text("오늘 날씨가 좋다\n", encoding="utf-8")
    code, out, _ = run("verify", output, "--text", text)
    assert code == 1
    assert "law 1" in out and "BROKEN" in out and "오늘" in out
    assert "unreachable tokens" in out


def reseal(overlay: Path) -> None:
    """Make the manifest agree with the overlay's files as they are now."""
    from vllm_kprune.checkpoint.manifest import load_manifest
    from vllm_kprune.storage.digest import sha256_file

    manifest = load_manifest(overlay)
    files = {name: sha256_file(overlay / name) for name in manifest.files}
    manifest.model_copy(update={"files": files}).write(overlay)


def test_inspect_compares_before_and_after(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    figures = built(run, model, profile, tmp_path / "out")
    code, out, _ = run("inspect", tmp_path / "out", "--json", "-")
    result = json.loads(out)
    assert code == 0
    assert result["tokens"] == {
        "original": figures["tokens"]["original"],
        "pruned": figures["tokens"]["kept"],
    }
    assert (
        sum(change["pruned"] for change in result["by_script"].values())
        == (figures["tokens"]["kept"])
    )
    assert result["vocabulary_bytes"]["pruned"] == figures["vocabulary_bytes"]["kept"]
    assert result["by_script"]["Han"]["pruned"] == 0
    assert result["tokens_per_character"]["ko"]["pruned"] > 0


def test_inspect_of_a_base_model_needs_no_profile(run: Command, model: Path) -> None:
    code, out, _ = run("inspect", model)
    assert code == 0
    assert "Hangul tokens" in out and "tokens per character, en" in out
    lines = [line.split(": ")[0] for line in out.splitlines()]
    assert "Gemma3ForCausalLM (Gemma-3 270M and 1B)" in out
    assert (lines.count("  shown"), lines.count("  assumed")) == (2, 1)


def test_inspect_tells_as_json_what_tests_show_for_the_family(run: Command, model: Path) -> None:
    _, out, _ = run("inspect", model, "--json", "-")
    family = json.loads(out)["family"]
    assert family["architecture"] == "Gemma3ForCausalLM"
    assert family["shown"] and family["assumed"]


def test_inspect_with_a_profile_writes_nothing(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = run("inspect", model, "--profile", profile, "--json", "-")
    assert code == 0
    assert json.loads(out)["tokens"]["pruned"] < json.loads(out)["tokens"]["original"]
    assert sorted(tmp_path.rglob("*")) == before


def damage(model: Path, what: str) -> None:
    """Spoil a model folder in one way."""
    config = model / "config.json"
    match what:
        case "no tokenizer":
            (model / "tokenizer.json").unlink()
        case "no weights":
            (model / "model.safetensors").unlink()
        case "pickled weights":
            (model / "model.safetensors").rename(model / "pytorch_model.bin")
        case "no config":
            config.unlink()
        case "unknown family":
            config.write_text(config.read_text().replace("Gemma3For", "Gemma9For"))
        case "damaged weights":
            (model / "model.safetensors").write_bytes(b"\x00" * 40)
        case "unmapped id":
            config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": 10**6}))
        case _:
            raise AssertionError(what)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no tokenizer", "no tokenizer.json"),
        ("no weights", "no *.safetensors weights"),
        ("pickled weights", "pickled"),
        ("no config", "no config.json"),
        ("unknown family", "families.py"),
        ("damaged weights", "not a readable safetensors"),
        ("unmapped id", "1000000"),
    ],
)
def test_a_bad_model_is_one_line_and_leaves_nothing(
    run: Command, model: Path, profile: Path, tmp_path: Path, what: str, said: str
) -> None:
    damage(model, what)
    code, out, err = run("build", model, "--profile", profile, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1 and err.startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "enkoo"], "did you mean 'enko'"),
        (["--profile", "missing.yaml"], "does not exist"),
        (["--target-size", "20"], "must keep at least"),
        (["--target-size", "99999999"], "above the vocabulary"),
        (["--corpus", "missing.txt"], "does not exist"),
        (["--usage", "missing.json"], "does not exist"),
    ],
)
@pytest.mark.slow
def test_bad_options_are_one_line_and_leave_nothing(
    run: Command, model: Path, profile: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    command = ["build", model, "--profile", profile, "-o", tmp_path / "out", *arguments]
    code, _, err = run(*command)
    assert code == 2
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_profile_key_names_the_nearest(
    run: Command, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("langages: [en]\n")
    code, _, err = run("build", model, "--profile", path, "-o", tmp_path / "out")
    assert code == 2
    assert "did you mean 'languages'" in err


def test_a_binary_corpus_is_refused(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(bytes(range(256)))
    code, _, err = run(
        "build", model, "--profile", profile, "-o", tmp_path / "out", "--corpus", corpus
    )
    assert code == 2
    assert "corpus" in err and err.count("\n") == 1


@pytest.mark.slow
def test_an_output_folder_in_use_needs_force(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    built(run, model, profile, output)
    code, _, err = run("build", model, "--profile", profile, "-o", output)
    assert code == 2 and "--force" in err
    built(run, model, profile, output, "--force")


def test_force_does_not_replace_what_kprune_did_not_make(
    run: Command, model: Path, profile: Path
) -> None:
    before = sorted(path.name for path in model.iterdir())
    code, _, err = run("build", model, "--profile", profile, "-o", model, "--force")
    assert code == 2 and "did not make" in err
    assert sorted(path.name for path in model.iterdir()) == before


def test_a_missing_model_is_told_plainly(run: Command, tmp_path: Path) -> None:
    code, _, err = run("build", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert code == 2 and "does not exist" in err


@pytest.mark.parametrize("change", ["manifest", "tokenizer", "weights", "moved"])
@pytest.mark.slow
def test_verify_refuses_what_changed_since_the_build(
    run: Command, model: Path, profile: Path, tmp_path: Path, change: str
) -> None:
    output = tmp_path / "out"
    built(run, model, profile, output)
    if change == "manifest":
        text = (output / "kprune.json").read_text(encoding="utf-8")
        (output / "kprune.json").write_text(text.replace('"ko"', '"en"'), encoding="utf-8")
    elif change == "tokenizer":
        (output / "tokenizer.json").write_text("{}")
    elif change == "weights":
        data = bytearray((model / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (model / "model.safetensors").write_bytes(data)
    else:
        model.rename(tmp_path / "elsewhere")
    code, _, err = run("verify", output)
    assert code == 2 and err.count("\n") == 1
    if change == "moved":
        assert "--base" in err
        assert run("verify", output, "--base", tmp_path / "elsewhere")[0] == 0


@pytest.mark.slow
def test_the_installed_command_runs_and_prints_no_traceback(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("kprune")
    done = subprocess.run(
        [command, "verify", tmp_path], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "kprune.json" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_inspect_lists_every_kept_token_with_its_reason(
    run: Command, model: Path, profile: Path, tmp_path: Path
) -> None:
    figures = built(run, model, profile, tmp_path / "out")
    code, _, err = run("inspect", tmp_path / "out", "--tokens", tmp_path / "tokens.tsv")
    assert code == 0, err
    with (tmp_path / "tokens.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, dialect="excel-tab"))
    assert [row["id"] for row in rows] == [str(n) for n in range(figures["tokens"]["kept"])]
    reasons = Counter(row["reason"] for row in rows)
    assert reasons == {name: n for name, n in figures["by_reason"].items() if n}
    tokens = read_tokenizer(tmp_path / "out").tokens
    assert [row["token"] for row in rows] == [tokens[int(row["id"])] for row in rows]
