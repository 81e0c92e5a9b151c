"""`kprune prompt`: what would be dropped, in the terminal, as a page and as JSON."""

import io
import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from vllm_kprune.cli import prompt as prompt_module

Command = Callable[..., tuple[int, str, str]]
TEXT = "the cat sat on the mat, 나는 오늘 학교에 갔다 & <b>3.14</b>\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def shown(out: str) -> tuple[str, str]:
    """(kept text, whole text) of what a pipe gets."""
    return re.sub(r"\[-.*?-\]", "", out, flags=re.S), re.sub(r"\[-(.*?)-\]", r"\1", out, flags=re.S)


@pytest.mark.slow
def test_what_is_dropped_is_marked_in_a_pipe(run: Command, model: Path, file: Path) -> None:
    code, out, err = run("prompt", file, "--ranker", model, "--keep", 0.5)
    assert code == 0, err
    kept, whole = shown(out.removesuffix("\n"))
    assert whole == TEXT
    assert 0 < len(kept) < len(TEXT)
    before, after = map(int, re.findall(r"(\d+) tokens -> (\d+) ", err)[0])
    assert after < before


@pytest.mark.slow
def test_the_kept_text_can_be_piped_on(
    run: Command, model: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, marked, _ = run("prompt", file, "--ranker", model, "--keep", 0.5)
    _, kept, _ = run("prompt", file, "--ranker", model, "--keep", 0.5, "--kept")
    assert kept == shown(marked.removesuffix("\n"))[0]
    stdin = io.TextIOWrapper(io.BytesIO(TEXT.encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert run("prompt", "--ranker", model, "--keep", 0.5, "--kept")[1] == kept


def test_a_terminal_gets_strikes_and_colours(
    run: Command, model: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = prompt_module.output_console
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "no_color", False)
    monkeypatch.setattr(console, "_color_system", 2)
    _, out, _ = run("prompt", file, "--ranker", model, "--keep", 0.5)
    assert re.search(r"\x1b\[[\d;]*9[;m]", out), "nothing is struck through"
    assert re.search(r"\x1b\[38;5;\d+m", out), "nothing is coloured"
    assert re.sub(r"\x1b\[[\d;]*m", "", out).strip() == TEXT.strip()


def test_marked_spans_alone_are_pruned(run: Command, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "marked.txt"
    path.write_text('keep me <kprune keep="0.3">the cat sat on the mat</kprune> and me')
    _, out, _ = run("prompt", path, "--ranker", model, "--keep", 0.9, "--json", "-")
    figures = json.loads(out)
    assert figures["text"].startswith("keep me ")
    assert figures["text"].endswith(" and me")
    (segment,) = figures["segments"]
    assert "".join(piece["text"] for piece in segment) == "the cat sat on the mat"
    assert figures["tokens_before"] == sum(piece["tokens"] for piece in segment)
    assert sum(p["tokens"] for p in segment if p["kept"]) <= 0.3 * figures["tokens_before"] + 1


def test_the_page_has_the_whole_text_and_loads_nothing(
    run: Command, model: Path, file: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    code, _, err = run("prompt", file, "--ranker", model, "--keep", 0.5, "--html", page)
    assert code == 0, err
    html = page.read_text(encoding="utf-8")
    body = re.search(r'<main id="text">(.*)</main>', html, flags=re.S)
    assert body is not None
    assert unescape(re.sub(r"<[^>]*>", "", body[1])) == TEXT
    assert 'class="p d"' in body[1]
    assert not re.search(r"""(src|href)=|url\(|@import|https?://""", html)


@pytest.mark.slow
def test_the_text_cannot_bring_a_script_into_the_page(
    run: Command, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "<i>&.txt"
    path.write_text('</main><script>1</script>"$title <kprune><script>2</script></kprune>')
    page = tmp_path / "page.html"
    run("prompt", path, "--ranker", model, "--html", page)
    html = page.read_text(encoding="utf-8")
    assert html.count("<script>") == 1
    assert "<i>" not in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--keep", "2"],
            "--keep: got '2', expected a share of the tokens, above 0 and at most 1, or off",
        ),
        (["--unit", "line"], "--unit: got 'line', expected token or word"),
        (
            ["--scorer", "best"],
            "--scorer: got 'best', expected sentences, rarity, question, attention or random",
        ),
        (["--target-tokens", "0"], "expected a number of tokens from 1"),
        (["--target-tokens", "9", "--keep", "0.5"], "give one of them"),
        (["--revision", "main"], "--revision is of a model on the hub"),
    ],
)
def test_a_mistake_is_one_line(
    run: Command, model: Path, file: Path, arguments: list[str], message: str
) -> None:
    code, out, err = run("prompt", file, "--ranker", model, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_file_that_is_no_text_is_refused(run: Command, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"ab\xff\xfe")
    assert "is not UTF-8" in run("prompt", path, "--ranker", model)[2]
    assert "cannot be read" in run("prompt", tmp_path / "none", "--ranker", model)[2]
    (tmp_path / "bad.txt").write_text("a <kprune> b")
    assert "is not closed" in run("prompt", tmp_path / "bad.txt", "--ranker", model)[2]


def test_the_text_is_never_overwritten(
    run: Command, model: Path, file: Path, tmp_path: Path
) -> None:
    again = tmp_path / "." / file.name
    for output in ("--html", "--json"):
        code, _, err = run("prompt", file, "--ranker", model, output, again)
        assert code == 2
        assert "is the text to prune" in err.replace("\n", " ")
    page = tmp_path / "page.html"
    assert run("prompt", file, "--ranker", model, "--html", page, "--json", page)[0] == 2
    assert file.read_text(encoding="utf-8") == TEXT


def test_a_scorer_and_a_question_that_do_not_go_together_are_said(
    run: Command, model: Path, file: Path
) -> None:
    code, _, err = run("prompt", file, "--ranker", model, "--scorer", "question")
    assert code == 0
    assert "without --query" in err
    rarity = run("prompt", file, "--ranker", model, "--scorer", "rarity", "--query", "x")
    assert "does not look at --query" in rarity[2]
    assert "--query" not in run("prompt", file, "--ranker", model)[2]
    both = run("prompt", file, "--ranker", model, "--scorer", "question", "--query", "cat?")
    assert "--query" not in both[2]


def test_page_and_command_count_the_same_and_say_how(
    run: Command, model: Path, file: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    _, _, err = run("prompt", file, "--ranker", model, "--keep", 0.5, "--html", page)
    before, after = re.findall(r"(\d+) tokens -> (\d+) ", err)[0]
    html = page.read_text(encoding="utf-8")
    assert f"<b>{before}</b> tokens → <b>{after}</b>" in html
    assert f"ranked by sentences, tokens of {model.name}" in html
    (tmp_path / "plain").touch()
    assert page.stat().st_mode == (tmp_path / "plain").stat().st_mode
