"""Two servers on one machine do not compute on the same cores."""

import os
from pathlib import Path

import pytest

from vllm_kprune.demo import pairs


def test_each_server_has_half_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setattr(pairs, "_cores", lambda: [0, 2, 4, 6, 8])
    first, second = pairs._halves_of_the_machine()
    assert first == {"VLLM_CPU_OMP_THREADS_BIND": "0,2"}
    assert second == {"VLLM_CPU_OMP_THREADS_BIND": "4,6"}


def test_one_core_cannot_be_shared_out_and_a_users_choice_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    monkeypatch.setattr(pairs, "_cores", lambda: [3])
    assert pairs._halves_of_the_machine() == ({}, {})
    monkeypatch.setattr(pairs, "_cores", lambda: [0, 1])
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    assert pairs._halves_of_the_machine() == ({}, {})


@pytest.mark.parametrize(
    ("siblings", "expected"),
    [
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, [0, 1]),
        ({0: "0-1", 1: "0-1"}, [0, 1]),  # one core: its two threads are better than nothing
        ({}, [0, 1, 2]),
    ],
)
def test_a_core_counts_once_however_many_threads_it_has(
    siblings: dict[int, str], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = set(siblings) or set(expected)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cpus)

    def number(path: Path) -> int:
        return int(path.parts[5].removeprefix("cpu"))

    monkeypatch.setattr(Path, "is_file", lambda path: number(path) in siblings)
    monkeypatch.setattr(Path, "read_text", lambda path: siblings[number(path)])
    assert pairs._cores() == expected
