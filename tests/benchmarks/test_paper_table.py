"""The table of the paper's experiment, and what it takes from a folder of real text."""

import json
from pathlib import Path

import numpy as np
from paper_data import own_data
from paper_table import table, write_table

from vllm_kprune.compare.measurements import Measurement, Metric, SuiteResult
from vllm_kprune.compare.report.build import build_report
from vllm_kprune.compare.report.document import EndpointReport, Report
from vllm_kprune.compare.suites.accuracy_tasks import chosen_tasks

PIPES = 3 + 9 + 1  # of a row: three columns that name it, and those of metrics


def report(tokens: str, original: float, pruned: float) -> Report:
    """Twenty items, of which so many pass on each side."""
    metric = Metric("lcpr_t0", "LCPR", "share", "higher", 0.02)
    sides = (np.array([[float(n < 20 * share)] for n in range(20)]) for share in (original, pruned))
    result = SuiteResult("stability", (Measurement(metric, tuple("abcdefghijklmnopqrst"), *sides),))
    endpoints = [
        EndpointReport(name="original", url="http://original/v1", model="m"),
        EndpointReport(
            name="pruned", url="http://pruned/v1", model="m", description={"tokens": tokens}
        ),
    ]
    return build_report(
        [result], endpoints=endpoints, settings={}, versions={}, seed=0, resamples=200
    )


REPORTS = {
    ("small", "enko"): report("79048 of 151665", 0.5, 0.9),
    ("small", "enkozh"): report("101339 of 151665", 0.6, 0.8),
    ("large", "enko"): report("", 1.0, 1.0),
}


def test_each_model_has_a_row_for_the_original_and_for_each_profile() -> None:
    lines = list(table(REPORTS))
    rows = [line.split(" | ") for line in lines[2:7]]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("| small", "original", "151,665"),
        ("| small", "enko", "79,048"),
        ("| small", "enkozh", "101,339"),
        ("| large", "original", "?"),
        ("| large", "enko", "?"),
    ]
    assert {line.count("|") for line in lines[:7]} == {PIPES}
    assert rows[0][5].startswith("50.0 % [") and rows[1][5].startswith("90.0 % [")
    assert rows[2][5].startswith("80.0 % [")
    assert rows[0][3] == "not measured"


def test_every_metric_is_told_with_its_effect_and_verdict() -> None:
    (line,) = [line for line in table(REPORTS) if line.startswith("| stability | LCPR | 20 | 50.0")]
    cells = line.split(" | ")
    assert cells[4].startswith("+40.0 pp [") and "better" in cells[4]
    assert cells[5].startswith("+20.0 pp [")


def test_the_json_has_all_figures_and_no_answers(tmp_path: Path) -> None:
    path = write_table(REPORTS, tmp_path)
    found = json.loads((tmp_path / "paper.json").read_text(encoding="utf-8"))
    assert path.name == "paper.md"
    (suite,) = found["small"]["enkozh"]["suites"]
    assert suite["metrics"][0]["pruned"]["value"] == 0.8
    assert "examples" not in suite


def test_real_text_becomes_tasks_of_the_accuracy_suite(kprune_data: Path, tmp_path: Path) -> None:
    found = own_data(kprune_data, tmp_path)
    (names,) = chosen_tasks(found["accuracy"]["tasks"], found["accuracy"]["data"]).values()
    assert names == ("boolq_ko", "sentineg_ko", "mgsm_en")
    for name in names:
        rows = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(rows) > 200
        assert all("prompt" in json.loads(row) for row in rows)


def test_a_folder_without_the_files_gives_no_options(tmp_path: Path) -> None:
    assert own_data(tmp_path, tmp_path / "made") == {}
    assert not (tmp_path / "made").exists()
