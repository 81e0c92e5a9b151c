"""A new built-in suite is one class and one row of the table: everything else follows."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from support.mock_answers import Habits
from support.mock_endpoint import MockEndpoint
from typer.testing import CliRunner

from vllm_kprune.cli import compare
from vllm_kprune.compare.asking import Task, answered, ask_both
from vllm_kprune.compare.comparing import compare_endpoints
from vllm_kprune.compare.endpoint.messages import Request
from vllm_kprune.compare.measurements import Measurement, Metric, SuiteResult
from vllm_kprune.compare.options import DATA, MEASURED, CommonOptions
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.run import Context, Suite
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import option


@dataclass(frozen=True)
class Toy(Suite):
    """Counts words."""

    @dataclass(frozen=True)
    class Options:
        """Its own options."""

        toys: int = option(7, "toy: number of toys.", least=6, most=20, group=MEASURED)
        toy_names: Path | None = option(None, "toy: names.", existing="file", group=DATA)

    options: Options = Options()
    name = "toy"
    help = "how many words an answer has"
    metrics = ("words",)

    def check(self, common: CommonOptions) -> None:
        """Read the file with names."""
        if self.options.toy_names and not self.options.toy_names.read_text(encoding="utf-8"):
            raise KPruneError("--toy-names: the file is empty")

    def run(self, context: Context) -> SuiteResult:
        """Ask about every toy."""
        tasks = [
            Task(f"toy {n}", Request("completion", prompt=f"A toy {n}?", max_tokens=9 + n))
            for n in range(self.options.toys)
        ]
        done = answered(tasks, ask_both(context, self.name, tasks))
        if not done:
            return SuiteResult(self.name, (), unavailable={"*": "no toy was answered"})
        words = np.array([[float(len(one.text.split())) for one in pair] for _, pair in done])
        metric = Metric("words", "words of an answer", "words", "higher", 0.5)
        items = tuple(task.key for task, _ in done)
        return SuiteResult(self.name, (Measurement(metric, items, words[:, :1], words[:, 1:]),))


Invoke = Callable[..., tuple[int, str]]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """`kprune compare` with the toy suite in the table."""
    monkeypatch.setitem(SUITES, "toy", Toy())
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    compare.register(app)

    def run(*arguments: object) -> tuple[int, str]:
        environment = {"COLUMNS": "200", "TERM": "dumb"}
        result = CliRunner().invoke(app, ["compare", *map(str, arguments)], env=environment)
        mistake = isinstance(result.exception, KPruneError)
        return (2 if mistake else result.exit_code), f"{result.output}{result.exception or ''}"

    return run


def test_a_suite_in_the_table_is_in_the_help_a_run_the_report_and_the_gates(
    invoke: Invoke, tmp_path: Path
) -> None:
    _, shown = invoke("--help")
    assert "--toys" in shown and "toy: number of toys." in shown and "6<=x<=20" in shown
    assert "toy " in invoke("--list")[1]
    with MockEndpoint() as original, MockEndpoint(Habits(wrong_language=1.0)) as pruned:
        run = ("--original", original.url, "--pruned", pruned.url, "--suite", "toy", "-o", tmp_path)
        code, output = invoke(*run, "--toys", 9, "--fail-on", "toy>1000", "words>1000")
        assert code == 0, output
        assert "none of 2 --fail-on condition(s) is met" in output
        code, output = invoke(*run, "--toys", 9, "--fail-on", "toy<1000")
        assert (code, "failed: toy<1000" in output) == (1, True)
        code, output = invoke(*run, "--toys", 8)
        assert code == 2 and "toy.toys was 9, now 8" in output
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["toy.toys"] == 9
    assert report["suites"][0]["main"] == "words"
    assert report["suites"][0]["metrics"][0]["items"] == 9


def test_its_options_are_checked_before_the_folder_is_made(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "names").touch()
    with MockEndpoint() as original, MockEndpoint() as pruned:
        folder = tmp_path / "run"
        run = ("--original", original.url, "--pruned", pruned.url, "--suite", "toy", "-o", folder)
        code, output = invoke(*run, "--toy-names", tmp_path / "names")
        assert code == 2 and "--toy-names: the file is empty" in output
        assert invoke(*run, "--toys", 21)[0] == 2
        assert invoke(*run, "--fail-on", "toy.letters<0")[0] == 2
        assert original.asked == pruned.asked == [] and not folder.exists()


def test_python_takes_names_and_suites_with_their_options(tmp_path: Path) -> None:
    warnings: list[str] = []
    with MockEndpoint() as only:
        report = compare_endpoints(
            only.url,
            only.url,
            output=tmp_path,
            suites=[Toy(Toy.Options(toys=6)), "memory"],
            options=CommonOptions(concurrency=2),
            warn=warnings.append,
        )
    assert [suite.name for suite in report.suites] == ["toy", "memory"]
    assert report.suites[0].metrics[0].items == 6
    assert report.incomplete is None
    assert (tmp_path / "report.html").is_file()
    assert len(warnings) == 1 and "A/A run" in warnings[0]


def test_python_is_told_of_an_unknown_suite_and_of_a_dead_server(tmp_path: Path) -> None:
    with MockEndpoint() as original, MockEndpoint() as pruned:
        urls = original.url, pruned.url
        with pytest.raises(KPruneError, match="unknown suite 'memry'; did you mean 'memory'"):
            compare_endpoints(*urls, output=tmp_path / "run", suites=["memry"])
        pruned.habits = Habits(status=402)
        with pytest.raises(KPruneError, match="HTTP 402"):
            compare_endpoints(*urls, output=tmp_path / "run", suites=["memory"])


@pytest.mark.parametrize(
    ("common", "own", "message"),
    [
        ({"limit": 0}, {}, "limit: got 0, expected a whole number, 1 or more"),
        ({"languages": ["kr"]}, {}, "languages: unknown code 'kr'"),
        ({}, {"toys": 21}, "toy.toys: got 21, expected a whole number from 6 to 20"),
    ],
)
def test_python_is_told_of_options_out_of_bounds(
    common: dict[str, Any], own: dict[str, Any], message: str, tmp_path: Path
) -> None:
    options, suite = CommonOptions(**common), Toy(Toy.Options(**own))
    urls = "http://127.0.0.1:1", "http://127.0.0.1:2"  # never asked
    with pytest.raises(KPruneError, match=re.escape(message)):
        compare_endpoints(*urls, output=tmp_path / "run", suites=[suite], options=options)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_comparison_says_why_and_resumes(tmp_path: Path) -> None:
    table = SUITES | {"toy": Toy()}
    with MockEndpoint() as original, MockEndpoint() as pruned:

        def compared(suite: str) -> Report:
            urls = original.url, pruned.url
            return compare_endpoints(*urls, output=tmp_path, suites=[suite], configured=table)

        compared("memory")  # probes both endpoints
        pruned.habits = Habits(status=402)
        report = compared("toy")
        assert report.incomplete is not None and "HTTP 402" in report.incomplete
        assert report.summary.startswith("incomplete: ")
        pruned.habits = Habits()
        report = compared("toy")
    assert report.incomplete is None
    assert report.suites[0].metrics[0].items == 7
