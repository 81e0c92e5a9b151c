"""`kprune compare` as a user sees it: report, exit codes, and a run that is killed and resumed."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.command import Run, command_runner
from support.mock_answers import Habits
from support.mock_endpoint import MockEndpoint

from vllm_kprune.cli import console
from vllm_kprune.compare import comparing
from vllm_kprune.compare.endpoint.client import Client

pytest.importorskip("py3langid", reason="names languages; pip install 'vllm-kprune[compare]'")
SMALL = ("--suite", "stability", "--limit", "12")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return command_runner(capsys, "compare")


@pytest.fixture
def equal() -> Iterator[tuple[str, ...]]:
    """Options for two endpoints that give the same answers."""
    with MockEndpoint() as original, MockEndpoint() as pruned:
        yield "--original", original.url, "--pruned", f"{pruned.url}/v1/"


def report_in(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_several_conditions_may_follow_one_fail_on(
    run: Run, equal: tuple[str, ...], tmp_path: Path
) -> None:
    conditions = ("--fail-on", "stability<0", "stabilty<0")
    code, _, err = run(*equal, *SMALL, "-o", tmp_path, *conditions)
    assert code == 2
    assert "stabilty" in err
    code, _, err = run(*equal, *SMALL, "-o", tmp_path, "stability<0")
    assert (code, "conditions follow --fail-on" in err) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_run_writes_its_report_and_tells_it(
    run: Run, equal: tuple[str, ...], tmp_path: Path
) -> None:
    code, out, err = run(*equal, *SMALL, "-o", tmp_path, "--fail-on", "stability<0")
    assert code == 0, err
    assert "LCPR" in out
    assert "report.html" in err
    assert "gate: passed; none of 1 --fail-on condition(s) is met" in err
    assert "gate: stability<0: answers without any flaw (T=0 and 1): 0.0 pp [" in err
    assert "not met, but not ruled out either" in err
    assert "WORSE" not in err
    report = report_in(tmp_path)
    assert [suite["name"] for suite in report["suites"]] == ["stability"]
    assert [endpoint["name"] for endpoint in report["endpoints"]] == ["original", "pruned"]
    assert "the endpoint has no /kprune" in report["endpoints"][0]["description"]["without kprune"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    answers = (tmp_path / "answers" / "stability.jsonl").read_text().splitlines()
    assert len(answers) == 1 + 2 * 2 * 12


@pytest.mark.slow
def test_json_goes_to_standard_output_alone(
    run: Run, equal: tuple[str, ...], tmp_path: Path
) -> None:
    code, out, _ = run(*equal, *SMALL, "-o", tmp_path, "--json", "-")
    assert code == 0
    assert json.loads(out) == report_in(tmp_path)


@pytest.mark.slow
def test_a_gate_that_the_data_meet_fails_the_build(run: Run, tmp_path: Path) -> None:
    gate = ("--fail-on", "stability<0", "--fail-on", "broken_t0>0")
    with MockEndpoint() as original, MockEndpoint(Habits(wrong_language=0.9)) as pruned:
        endpoints = ("--original", original.url, "--pruned", pruned.url)
        code, _, err = run(*endpoints, *SMALL, "--language", "ko", "-o", tmp_path, *gate)
    assert code == 1, err
    assert err.count("failed:") == 1
    assert "failed: stability<0: " in err and "gate: passed" not in err
    assert report_in(tmp_path)


@pytest.mark.slow
def test_a_gate_cannot_contradict_the_verdict(run: Run, tmp_path: Path) -> None:
    """A third of the answers have characters of another script."""
    with MockEndpoint() as original, MockEndpoint(Habits(hanja=0.3)) as pruned:
        endpoints = ("--original", original.url, "--pruned", pruned.url, "-o", tmp_path)
        asked = (*endpoints, "--suite", "stability", "--limit", "60")
        for condition in ("worse", "stability<0"):
            code, _, err = run(*asked, "--fail-on", condition)
            assert (code, err.count("failed: ")) == (1, 1), err
            assert "characters of another script" in err or condition != "worse"
        # Asked for something else, the gate passes, but never in silence.
        code, _, err = run(*asked, "--fail-on", "stability.lcpr_t0<0")
    assert code == 0, err
    assert "WARNING: worse: stability: characters of another script (T=0): +" in err
    assert "metric(s) are WORSE; --fail-on worse fails on them" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--suite", "stabilty"), "did you mean 'stability'"),
        (("--language", "kr"), "unknown code 'kr'"),
        (("--fail-on", "stabilty<0"), "did you mean 'stability'"),
        (("--fail-on", "stability=0"), "cannot be read"),
        (("--original", "nowhere"), "expected a URL"),
        (("--pruned-model", "other"), "'other' is not served"),
    ],
)
def test_a_mistake_is_told_on_a_line_before_anything_is_asked(
    options: tuple[str, ...], told: str, run: Run, equal: tuple[str, ...], tmp_path: Path
) -> None:
    code, _, err = run(*equal, "-o", tmp_path / "run", *options)
    assert code == 2
    assert err.startswith("error: ")
    assert told in err
    assert not (tmp_path / "run" / "answers" / "stability.jsonl").exists()


@pytest.mark.slow
def test_another_seed_needs_another_folder_or_a_fresh_start(
    run: Run, equal: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert run(*equal, *SMALL, "-o", folder)[0] == 0
    code, _, err = run(*equal, *SMALL, "-o", folder, "--seed", 1)
    assert code == 2
    assert "seed was 0, now 1" in err
    code, _, err = run(*equal, *SMALL, "-o", folder, "--seed", 1, "--fresh")
    assert code == 0, err
    assert report_in(folder)["seed"] == 1
    assert report_in(tmp_path / "run.1")["seed"] == 0


def test_the_suites_are_listed(run: Run) -> None:
    code, out, _ = run("--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()][:2] == ["stability", "translation"]


def kill_when(options: list[str], enough: Callable[[], bool]) -> None:
    """Start the command as a separate process, and kill it in the middle of its work."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from vllm_kprune.cli import main; main()", "compare", *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not enough():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_ends_in_the_same_report(
    run: Run, tmp_path: Path
) -> None:
    flawed = Habits(hanja=0.2, failing=3, rate_limited=2, delay_seconds=0.01)
    with MockEndpoint() as original, MockEndpoint(flawed) as pruned:
        endpoints = ["--original", original.url, "--pruned", pruned.url]
        options = [*endpoints, "--suite", "stability,exactness", "--limit", "16"]
        killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
        kill_when([*options, "-o", str(killed)], lambda: len(pruned.asked) >= 25)
        assert not (killed / "report.json").exists()
        kept = (killed / "answers" / "stability.jsonl").read_bytes().count(b"\n") - 1
        assert 0 < kept < 2 * 2 * 16
        asked = len(original.asked) + len(pruned.asked)
        assert run(*options, "-o", killed)[0] == 0
        assert len(original.asked) + len(pruned.asked) - asked == 2 * 3 * 16 - kept
        assert run(*options, "-o", unbroken)[0] == 0
    for name in ("report.json", "report.html"):
        assert (killed / name).read_bytes() == (unbroken / name).read_bytes()


@pytest.mark.slow
def test_a_server_that_dies_leaves_a_report_and_the_same_command_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "_wait", lambda *arguments: 0.0)
    suites = ("--suite", "stability,exactness", "--limit", "12", "-o", tmp_path / "run")
    with MockEndpoint() as original:
        with MockEndpoint(Habits(dies_after=20)) as pruned:
            port = pruned.server.server_address[1]
            endpoints = ("--original", original.url, "--pruned", pruned.url)
            code, out, err = run(*endpoints, *suites, "--fail-on", "exactness<0")
        assert code == 3, err
        assert "the same command resumes" in err
        summary = report_in(tmp_path / "run")["summary"]
        assert summary.startswith("incomplete: ")
        assert summary.endswith("not measured: exactness")
        assert summary in " ".join(out.split())
        stability, exactness = report_in(tmp_path / "run")["suites"]
        assert stability["metrics"]
        assert "no longer answers" in exactness["unavailable"]["*"]
        with MockEndpoint(port=port):
            code, _, err = run(*endpoints, *suites)
        assert code == 0, err
    stability, exactness = report_in(tmp_path / "run")["suites"]
    assert stability["metrics"][0]["items"] == 12
    assert exactness["metrics"]


def test_long_names_do_not_cost_the_report(run: Run, tmp_path: Path) -> None:
    with MockEndpoint(Habits(model="m" * 300)) as original, MockEndpoint() as pruned:
        endpoints = ("--original", original.url, "--pruned", pruned.url)
        code, _, err = run(*endpoints, "--suite", "exactness", "--limit", 2, "-o", tmp_path)
    assert code == 0, err
    assert report_in(tmp_path)["endpoints"][0]["model"].startswith("mmm")


def test_ctrl_c_tells_what_is_kept(
    run: Run, equal: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparing, "run_suites", stopped)
    code, _, err = run(*equal, *SMALL, "-o", tmp_path)
    assert code == 130
    assert "the same command resumes" in err and str(tmp_path) in err.replace("\n", "")


def test_where_nobody_watches_progress_is_told_now_and_then_and_never_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LINE_SECONDS", 1.5)
    moments = itertools.count()
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    with console.counts() as tell:
        for done in (*range(1, 7), 6, 6):
            tell("accuracy", done, 6)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "accuracy: 6 of 6"
    assert len(lines) == len(set(lines))
    assert 2 <= len(lines) < 6


def test_where_nobody_watches_waiting_is_told_as_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LINE_SECONDS", 0.02)
    told = ""
    with console.counts() as tell:
        tell("accuracy", 2, 6)
        for _ in range(500):
            told += capsys.readouterr().err
            if told.count("accuracy: 2 of 6, waiting for 0 s") >= 2:
                break
            time.sleep(0.01)
        else:
            pytest.fail(told)
        tell("accuracy", 6, 6)
        capsys.readouterr()
        time.sleep(0.1)
        assert "waiting" not in capsys.readouterr().err


def test_a_copy_of_the_report_that_cannot_be_written_is_told(
    run: Run, equal: tuple[str, ...], tmp_path: Path
) -> None:
    target = tmp_path / "missing" / "report.json"
    code, _, err = run(*equal, *SMALL, "--limit", 2, "-o", tmp_path / "run", "--json", target)
    assert code == 2
    assert "cannot be written" in err


def test_the_same_endpoint_twice_is_told_and_never_passes_a_gate(run: Run, tmp_path: Path) -> None:
    with MockEndpoint() as only:
        same = ("--original", only.url, "--pruned", f"{only.url}/v1/", *SMALL, "--limit", 2)
        code, _, err = run(*same, "-o", tmp_path / "gated", "--fail-on", "stability<0")
        assert code == 2
        assert "both sides are the same endpoint" in err and "name the other server" in err
        assert not (tmp_path / "gated").exists()
        code, _, err = run(*same, "-o", tmp_path / "plain")
    assert code == 0, err
    assert "warning: both sides are the same endpoint: an A/A run" in err
    for endpoint in report_in(tmp_path / "plain")["endpoints"]:
        assert "A/A run" in endpoint["description"]["warning"]


@pytest.mark.parametrize(
    ("option", "name", "text", "told"),
    [
        ("--translation", "one.tsv", "ko\n안녕\n", "columns with text: 'ko'"),
        ("--translation", "one.tsv", "kor\teng\n안녕\tHi\n", "columns with text: 'kor', 'eng'"),
        ("--input-data", "one.jsonl", '{"context": "x"}\n', "expected text in `question`"),
        ("--accuracy-data", "one.jsonl", "{\n", "is not JSON"),
        ("--benchmark", "one.csv", "prompt\nx\n", "without `prompt` and `language`"),
    ],
)
def test_a_wrong_data_file_is_told_before_the_folder_is_made(
    option: str, name: str, text: str, told: str, run: Run, equal: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / name
    path.write_text(text, encoding="utf-8")
    given = path.parent if option in ("--accuracy-data", "--benchmark") else path
    code, _, err = run(*equal, "-o", tmp_path / "run", option, given)
    assert code == 2
    assert told in err
    assert not (tmp_path / "run").exists()


def test_a_run_that_measured_nothing_is_no_success(
    run: Run, equal: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    alone = ("--suite", "translation", "--language", "fr", "--language", "ko", "-o", tmp_path)
    code, _, err = run(*equal, *alone)
    assert code == 2
    assert "nothing could be measured: translation: kprune's own sentences (" in err
    assert report_in(tmp_path)["suites"][0]["metrics"] == []
    assert run(*equal, *alone, "--fail-on", "translation<0")[0] == 1
