"""Counts of tokens: sums over processes equal a recount, and are told some requests later."""

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kprune.serving.environment import COUNTER_FOLDER, USAGE_ROWS
from vllm_kprune.serving.usage import counts
from vllm_kprune.serving.usage.counts import Totals, UsageCounts, process_counts, released

ROWS = 40
# Requests, each with one answer or more; some tokens are common, some rare, some no rows.
Requests = list[list[list[int]]]


def traffic(seed: int, number: int) -> Requests:
    pick = random.Random(seed)
    ids = [i for i in range(ROWS) for _ in range(1 + 400 // (i + 1) ** 2)] + [ROWS, ROWS + 7]
    return [
        [pick.choices(ids, k=pick.randrange(12)) for _ in range(pick.choice([1, 1, 1, 3]))]
        for _ in range(number)
    ]


def recount(requests: Iterable[Sequence[Sequence[int]]]) -> tuple[Counter[int], Counter[int], int]:
    """Occurrences by id, requests by id, requests: counted one token after another."""
    occurrences: Counter[int] = Counter()
    in_requests: Counter[int] = Counter()
    number = 0
    for answers in requests:
        ids = [i for answer in answers for i in answer if i < ROWS]
        occurrences.update(ids)
        in_requests.update(set(ids))
        number += bool(ids)
    return occurrences, in_requests, number


def count(file: UsageCounts, requests: Requests) -> None:
    for answers in requests:
        earlier: set[int] | None = set() if len(answers) > 1 else None
        for answer in answers:
            file.add(answer, earlier)


def as_counters(totals: Totals) -> tuple[Counter[int], Counter[int], int]:
    found = (
        Counter({i: n for i, n in enumerate(column.tolist()) if n})
        for column in (totals.occurrences, totals.in_requests)
    )
    return next(found), next(found), totals.requests


ANSWER = st.lists(st.integers(0, ROWS + 3), max_size=8)


@settings(max_examples=60)
@given(st.lists(st.lists(ANSWER, min_size=1, max_size=3), min_size=1, max_size=8))
def test_counts_are_those_of_a_recount(requests: Requests) -> None:
    file = UsageCounts(None, ROWS)
    count(file, requests)
    found = Totals(file._occurrences[:ROWS], file._in_requests[:ROWS], int(file._in_requests[ROWS]))
    assert as_counters(found) == recount(requests)


_PROCESS = """
import json, sys
from vllm_kprune.serving.usage import counts
from vllm_kprune.serving.usage.counts import process_counts
for line in sys.stdin:
    answers = json.loads(line)
    earlier = set() if len(answers) > 1 else None
    for answer in answers:
        process_counts().add(answer, earlier)
"""


@pytest.mark.slow
def test_what_several_processes_count_at_once_is_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    monkeypatch.setenv(USAGE_ROWS, str(ROWS))
    streams = [traffic(seed, 120) for seed in range(3)]
    processes = [
        subprocess.Popen([sys.executable, "-c", _PROCESS], stdin=subprocess.PIPE, text=True)
        for _ in streams
    ]
    for process, stream in zip(processes, streams, strict=True):
        process.communicate("\n".join(map(json.dumps, stream)))
        assert process.returncode == 0
    assert len(list(tmp_path.glob("*.usage"))) == 3
    everything = [request for stream in streams for request in stream]
    assert as_counters(released(tmp_path, ROWS, 20)) == recount(everything)


@pytest.mark.parametrize("step", [20, 33])
def test_what_is_told_changes_only_after_a_number_of_further_requests(
    tmp_path: Path, step: int
) -> None:
    files = [UsageCounts(tmp_path, ROWS) for _ in range(2)]
    told = as_counters(released(tmp_path, ROWS, step))
    assert told == (Counter(), Counter(), 0)
    for number in range(1, 4 * step):
        files[number % 2].add([number % 3])
        now = as_counters(released(tmp_path, ROWS, step))
        if number % step:
            assert now == told
        else:
            assert now[2] == number
        told = now


def test_a_request_counts_once_for_a_token_however_many_answers_have_it(tmp_path: Path) -> None:
    file, earlier = UsageCounts(tmp_path, ROWS), set[int]()
    for answer in ([1, 1, 2], [2, 3], [1]):
        file.add(answer, earlier)
    file.add([1] * 19)
    totals = released(tmp_path, ROWS, 2)
    assert totals.occurrences[:4].tolist() == [0, 22, 2, 1]
    assert totals.in_requests[:4].tolist() == [0, 2, 1, 1]
    assert totals.requests == 2


def test_a_token_is_in_no_more_requests_than_there_are_while_they_are_counted(
    tmp_path: Path,
) -> None:
    """What a reader sees between two writes: the number of requests is written first."""
    file = UsageCounts(tmp_path, ROWS)
    seen: list[bool] = []

    class Watched(np.ndarray):
        def __setitem__(self, key: object, value: object) -> None:
            super().__setitem__(key, value)
            plain = np.asarray(self)
            seen.append(bool((plain[:ROWS] <= plain[ROWS]).all()))

    file._in_requests = file._in_requests.view(Watched)
    file.add([1, 2])
    file.add([1], set())
    assert seen and all(seen)


def test_a_folder_that_cannot_be_written_costs_the_counts_and_not_the_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv(USAGE_ROWS, str(ROWS))
    monkeypatch.setattr(counts, "new_records", full)
    warnings: list[tuple[object, ...]] = []
    monkeypatch.setattr(counts.logger, "warning", lambda *message: warnings.append(message))
    process_counts.cache_clear()
    assert process_counts() is process_counts() is None
    process_counts.cache_clear()
    assert len(warnings) == 1
