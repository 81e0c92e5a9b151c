"""`kprune inspect --curve`: the table, its JSON, and the drawing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_kprune.cli import curve as curve_module

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """A Korean text and an English one."""
    korean, english = tmp_path / "ko.txt", tmp_path / "en.txt"
    korean.write_text("나는 오늘 학교에 갔다.\n서울의 날씨는 오늘도 좋다.\n", encoding="utf-8")
    english.write_text("the cat sat on the mat\nthe weather in Seoul\n", encoding="utf-8")
    return [korean, english]


def curve_of(run: Command, *arguments: object) -> dict[str, Any]:
    code, out, err = run("inspect", *arguments, "--curve", "--json", "-")
    assert code == 0, err
    curve: dict[str, Any] = json.loads(out)
    return curve


def test_points_grow_in_size_and_memory_up_to_the_original(
    run: Command, model: Path, profile: Path, texts: list[Path]
) -> None:
    curve = curve_of(run, model, "--profile", profile, "--text", texts[0], "--text", texts[1])
    points = curve["points"]
    sizes = [point["tokens"] for point in points]
    assert len(points) > 5
    assert sizes == sorted(set(sizes))
    assert [p["vocabulary_bytes"] for p in points] == [16 * size for size in sizes]
    assert set(points[-1]["extra_tokens"].values()) == {0.0}
    for name in map(str, texts):
        shares = [point["extra_tokens"][name] for point in points]
        assert shares == sorted(shares, reverse=True)
    english = [point["extra_tokens"][str(texts[1])] for point in points]
    assert english[0] > 0.2
    assert (curve["measured_on"], curve["chosen"] in sizes) == ("text", True)


@pytest.mark.slow
def test_the_chosen_point_is_what_build_keeps(
    run: Command, model: Path, profile: Path, texts: list[Path], tmp_path: Path
) -> None:
    sized = (model, "--profile", profile, "--max-extra-tokens", 0.02, "--corpus", texts[1])
    curve = curve_of(run, *sized)
    code, out, _ = run("build", *sized, "-o", tmp_path / "out", "--json", "-")
    assert code == 0
    assert curve["chosen"] == json.loads(out)["tokens"]["kept"]
    (point,) = [p for p in curve["points"] if p["tokens"] == curve["chosen"]]
    assert set(point["extra_tokens"]) == {
        *("word list ko", "marks", "corpus en.txt"),
        *("Korean text", "Korean dates and units", "parts of hanja"),
    }
    # Without `hanja`, parts of their characters are held to no share.
    assert max(v for k, v in point["extra_tokens"].items() if k != "parts of hanja") <= 0.02


def test_the_table_marks_the_profiles_size_and_says_what_it_was_measured_on(
    run: Command, model: Path, profile: Path, texts: list[Path]
) -> None:
    code, out, _ = run("inspect", model, "--profile", profile, "--curve")
    assert code == 0
    assert "← small" in out and "original" in out and "--text FILE" in out
    assert "--json has all 5" in " ".join(out.split())
    code, out, _ = run("inspect", model, "--profile", profile, "--curve", "--text", texts[0])
    assert code == 0 and "own evidence" not in out


def test_a_tokenizer_without_weights_has_a_curve_without_memory(
    run: Command, model: Path, profile: Path, texts: list[Path]
) -> None:
    (model / "model.safetensors").unlink()
    curve = curve_of(run, model, "--profile", profile, "--text", texts[0])
    assert {point["vocabulary_bytes"] for point in curve["points"]} == {None}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "original", "--curve"], "keeps every token"),
        (["--profile", "PROFILE", "--curve", "--text", "missing.txt"], "does not exist"),
        (["--profile", "PROFILE", "--curve", "--language", "zh"], "leave out --language"),
        (["--profile", "PROFILE", "--plot", "plot.pdf"], "must end in .html, .png, .svg"),
        (["--profile", "PROFILE", "--plot", "no/such/folder/plot.png"], "does not exist"),
        (["--plot", "plot.png"], "need --profile"),
    ],
)
def test_bad_input_is_one_line(
    run: Command, model: Path, profile: Path, arguments: list[str], said: str
) -> None:
    given = [profile if argument == "PROFILE" else argument for argument in arguments]
    code, out, err = run("inspect", model, *given)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_a_missing_library_names_the_extra_before_anything_is_measured(
    run: Command, model: Path, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curve_module, "_LIBRARIES", ("no_such_library",))
    plot = tmp_path / "plot.png"
    code, out, err = run("inspect", model, "--profile", profile, "--plot", plot)
    assert (code, out) == (2, "")
    assert "no_such_library" in err and "vllm-kprune[plot]" in err
    assert not plot.exists()


@pytest.mark.parametrize(
    ("name", "begins"), [("c.png", b"\x89PNG"), ("c.svg", b"<svg"), ("c.html", b"<!DOCTYPE html>")]
)
def test_the_curve_is_drawn(
    run: Command, model: Path, profile: Path, texts: list[Path], name: str, begins: bytes
) -> None:
    pytest.importorskip("altair", reason="the extra plot is not installed")
    pytest.importorskip("vl_convert", reason="the extra plot is not installed")
    plot = texts[0].parent / name
    arguments = ("--text", texts[0], "--plot", plot)
    code, _, err = run("inspect", model, "--profile", profile, *arguments)
    assert code == 0, err
    drawn = plot.read_bytes()
    assert drawn.lstrip().startswith(begins)
    if name.endswith(".html"):
        assert b"ko.txt" in drawn
        assert b"<script" not in drawn and b'src="' not in drawn  # nothing is run or loaded
        assert b"prefers-color-scheme: dark" in drawn and b"width=device-width" in drawn
        assert b"<td>" in drawn
