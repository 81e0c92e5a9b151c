"""Judging kept answers again: the same bytes without servers, and other margins and conditions."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command import Run, command_runner
from support.mock_answers import Habits
from support.mock_endpoint import MockEndpoint

from vllm_kprune.cli import main
from vllm_kprune.compare.margins import parse_margins
from vllm_kprune.errors import KPruneError

pytest.importorskip("py3langid", reason="names languages; pip install 'vllm-kprune[compare]'")
ASKED = ("--suite", "stability,translation,exactness,latency,memory,input", "--limit", "8")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return command_runner(capsys, "compare")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of every suite but `accuracy`, whose servers have stopped."""
    folder = tmp_path_factory.mktemp("run") / "report"
    pruner = {"/kprune": {"active": True, "input_pruner": {"available": True}}}
    flawed = Habits(hanja=0.4, salt="x", paths=pruner)
    with MockEndpoint() as original, MockEndpoint(flawed) as pruned, pytest.raises(SystemExit):
        sides = ("--original", original.url, "--pruned", pruned.url)
        main(["compare", *sides, *ASKED, "--rounds", "1", "--batch", "2", "-o", str(folder)])
    yield folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def report_in(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_same_answers_give_the_same_bytes_without_servers(run: Run, folder: Path) -> None:
    before = contents(folder)
    suites = {suite["name"]: suite for suite in report_in(folder)["suites"]}
    assert suites.keys() == {*ASKED[1].split(",")}
    assert suites["input"]["metrics"]  # /kprune said so, and is remembered
    code, out, err = run("--rejudge", folder)
    assert code == 0, err
    assert "stability" in out
    assert contents(folder) == before


def test_other_margins_and_conditions_change_the_verdict_alone(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    before = contents(folder)
    junit = tmp_path / "junit.xml"
    margin = ("--margin", "stability=1", "--margin", "stability.foreign_t0=1")
    gates = ("--fail-on", "stability<-0.9", "--junit", junit)
    code, _, err = run("--rejudge", folder, "-s", "stability", "-o", tmp_path, *margin, *gates)
    assert code == 0, err
    assert contents(folder) == before
    report, old = report_in(tmp_path), report_in(folder)
    assert report["settings"].pop("margins") == ["stability=1", "stability.foreign_t0=1"]
    assert report["settings"] == old["settings"]
    (suite,) = report["suites"]
    verdicts = {one["name"]: (one["verdict"], one["margin"]) for one in suite["metrics"]}
    assert verdicts[suite["main"]] == ("equal", 1.0)
    scores = {one["name"]: one["effect"] for one in old["suites"][0]["metrics"]}
    assert {one["name"]: one["effect"] for one in suite["metrics"]} == scores
    assert "stability&lt;-0.9" in junit.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--limit", "9"), "--limit would change what is asked, and --rejudge only judges"),
        (("--original", "http://a"), "--original would change what is asked"),
        (("--seed", "0"), "--seed would change what is asked"),
        (("--fresh",), "--fresh would change what is asked"),
        (("-s", "accuracy"), "--suite accuracy: this run did not ask it; it has stability,"),
        (
            ("--margin", "lprt=0.1"),
            "--margin lprt=0.1: no such suite or metric in this run; known: ",
        ),
        (("--margin", "stability"), "expected NAME=NUMBER, such as stability=0.03"),
    ],
)
def test_what_would_ask_something_else_is_refused_in_one_line(
    run: Run, folder: Path, options: tuple[str, ...], message: str
) -> None:
    before = contents(folder)
    code, _, err = run("--rejudge", folder, *options)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err
    assert contents(folder) == before


def test_a_folder_without_answers_is_refused(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--rejudge", tmp_path)
    assert code == 2
    assert "has no answers of a comparison; expected the folder of a run" in err
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "endpoints.jsonl").write_text("[1]\n")
    code, _, err = run("--rejudge", tmp_path)
    assert (code, "is damaged" in err) == (2, True)


def test_answers_that_were_lost_are_said_to_be_missing(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers"
    answers.mkdir()
    for path in (folder / "answers").glob("*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        kept = lines[: len(lines) // 2] if path.stem == "stability" else lines
        (answers / path.name).write_bytes(b"".join(kept))
    code, out, _ = run("--rejudge", tmp_path)
    assert code == 0
    assert "answers failed and are left out" in out
    assert "not among the saved answers" in str(report_in(tmp_path)["suites"][0]["notes"])


def test_a_run_that_died_stays_incomplete(run: Run, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    died = report_in(folder) | {"incomplete": "the pruned endpoint no longer answers"}
    (copy / "report.json").write_text(json.dumps(died))
    code, _, err = run("--rejudge", copy, "-s", "memory")
    assert (code, report_in(copy)["incomplete"]) == (3, died["incomplete"])
    assert "incomplete: the pruned endpoint no longer answers" in err


def test_without_servers_and_without_a_folder_the_url_is_missed(run: Run) -> None:
    for given, missing in (
        (("--pruned", "http://a"), "--original"),
        (("--original", "a"), "--pruned"),
    ):
        code, _, err = run(*given)
        assert (code, f"{missing} is missing, expected a URL" in err) == (2, True)


def test_margins_are_read_strictly() -> None:
    (margin,) = parse_margins(["latency.ttft_p50=0.1"])
    assert (margin.name, margin.value) == ("latency.ttft_p50", 0.1)
    for text in ("", "a=", "=1", "a=-1", "a=nan", "a=1e9", "A b=1"):
        with pytest.raises(KPruneError, match="cannot be read"):
            parse_margins([text])
