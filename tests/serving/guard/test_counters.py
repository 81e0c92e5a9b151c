"""Counter files: sums over processes, bounded labels, and what `/metrics` shows of them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from vllm_kprune.serving.counter_files import counter_folder
from vllm_kprune.serving.environment import COUNTER_FOLDER
from vllm_kprune.serving.guard.counters import (
    REASONING,
    CounterFile,
    explain_dead_end,
    read_totals,
    well_known_labels,
)
from vllm_kprune.serving.guard.metrics import GuardCollector, show_counts


def count(folder: Path | None, label: str, **numbers: int) -> CounterFile:
    file = CounterFile(folder)
    for counter, number in numbers.items():
        file.add(counter, file.slot(label), number)
    return file


def test_the_counts_of_several_processes_are_added(tmp_path: Path) -> None:
    count(tmp_path, "en+ko", requests=2, changed_steps=5)
    count(tmp_path, "en+ko", requests=1)
    count(tmp_path, "ja", dead_ends=1)
    assert read_totals(tmp_path) == {
        "en+ko": {"requests": 3, "changed_steps": 5, "dead_ends": 0},
        "ja": {"requests": 0, "changed_steps": 0, "dead_ends": 1},
    }


def test_labels_beyond_the_first_32_are_counted_as_other(tmp_path: Path) -> None:
    file = CounterFile(tmp_path)
    for n in range(40):
        file.add("requests", file.slot(f"set {n}"))
    totals = read_totals(tmp_path)
    assert len(totals) == 33
    assert totals["other"]["requests"] == 8
    assert totals["set 31"]["requests"] == 1


def test_odd_sets_leave_their_labels_to_those_that_are_expected(tmp_path: Path) -> None:
    file = CounterFile(tmp_path, [*well_known_labels(), "th+hanja"])
    for n in range(200):
        file.slot(f"set {n}")
    for label in ("en+ko", "ko+hanja", "en+ja", "fr", f"{REASONING}en+ko", "th+hanja"):
        assert file.slot(label) > 0
    assert file.slot("ar+cs+de") == 0
    assert len({file.slot(label) for label in well_known_labels()}) == len({*well_known_labels()})


def test_a_process_without_a_folder_counts_for_itself() -> None:
    count(None, "en", requests=1)
    assert read_totals(None) == {}


def test_the_folder_is_made_once_named_in_the_environment_and_goes_with_its_maker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = """
import json, os
from vllm_kprune.serving.counter_files import counter_folder, ensure_folder
from vllm_kprune.serving.environment import COUNTER_FOLDER
made = ensure_folder()
assert ensure_folder() == counter_folder() == made
if not (child := os.fork()):
    raise SystemExit
os.waitpid(child, 0)
print(json.dumps([os.environ[COUNTER_FOLDER], made.is_dir()]))
"""
    monkeypatch.delenv(COUNTER_FOLDER, raising=False)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    folder, was_there = json.loads(done.stdout)
    assert was_there
    assert not Path(folder).exists()


def test_a_folder_of_another_machine_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COUNTER_FOLDER, "/nowhere/at-all")
    assert counter_folder() is None


def test_metrics_show_the_counts_by_language_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    count(tmp_path, "en+ko", requests=2, changed_steps=5)
    count(tmp_path, REASONING + "ko", changed_steps=3)
    registry = CollectorRegistry()
    show_counts(registry)
    show_counts(registry)
    text = generate_latest(registry).decode()
    assert 'kprune_guard_requests_total{languages="en+ko"} 2.0' in text
    assert text.count("kprune_guard_requests_total{") == 1
    assert 'kprune_guard_changed_steps_total{languages="en+ko",phase="answer"} 5.0' in text
    assert 'kprune_guard_changed_steps_total{languages="ko",phase="reasoning"} 3.0' in text
    assert text.count('kprune_guard_dead_ends_total{languages="en+ko",phase="answer"}') == 1


def test_several_api_servers_show_the_same_sums(tmp_path: Path) -> None:
    code = """
import sys
from prometheus_client import CollectorRegistry, Counter, generate_latest, multiprocess
from vllm_kprune.serving.guard.metrics import show_counts
Counter("vllm_requests", "Another counter").inc()
for _ in range(2):
    show_counts(CollectorRegistry())
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""
    (tmp_path / "theirs").mkdir()
    count(tmp_path, "en+ko", requests=2)
    environment = {
        COUNTER_FOLDER: str(tmp_path),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "theirs"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "vllm_requests_total 1.0" in done.stdout
    assert done.stdout.count('kprune_guard_requests_total{languages="en+ko"} 2.0') == 1


def test_a_server_without_a_guard_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COUNTER_FOLDER, raising=False)
    registry = CollectorRegistry()
    show_counts(registry)
    assert generate_latest(registry) == b""


def test_a_dead_end_explains_the_errors_right_after_it(tmp_path: Path) -> None:
    assert explain_dead_end(tmp_path) is None
    file = count(tmp_path, "en+ko", requests=1)
    assert explain_dead_end(tmp_path) is None
    file.add("dead_ends", file.slot("en+ko"))
    message = explain_dead_end(tmp_path)
    assert message is not None
    assert "no token was left" in message
    assert explain_dead_end(tmp_path, now=time.time() + 60) is None


def test_describing_the_metrics_reads_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(COUNTER_FOLDER, raising=False)
    names = [family.name for family in GuardCollector().describe()]
    assert names == [
        "kprune_guard_requests",
        "kprune_guard_changed_steps",
        "kprune_guard_dead_ends",
    ]
