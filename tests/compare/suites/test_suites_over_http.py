"""The suites over real HTTP: each measures something, or says why not."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.mock_answers import Habits
from support.mock_endpoint import MockEndpoint

from vllm_kprune.compare.connect import Address, connect
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.run import run_suites
from vllm_kprune.compare.suites import SUITES, latency
from vllm_kprune.compare.suites.accuracy import Accuracy
from vllm_kprune.compare.suites.latency import Latency
from vllm_kprune.compare.suites.memory import Memory

NAMES = ("translation", "accuracy", "latency", "memory", "input")


def test_every_suite_measures_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    monkeypatch.setattr(latency, "SETTLE_SECONDS", 0.0)
    options = CommonOptions(limit=3, concurrency=2)
    accuracy: dict[str, Any] = {"tasks": ("no_such",)}
    if find_spec("lm_eval"):
        rows = [{"prompt": f"{n}번?", "answer": "네"} for n in range(4)]
        path = tmp_path / "data" / "short.jsonl"
        path.parent.mkdir()
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        accuracy = {"data": path.parent}
    suites = SUITES | {
        "accuracy": Accuracy(Accuracy.Options(**accuracy)),
        "latency": Latency(Latency.Options(batches=(1, 5))),
    }
    large, small = (Habits(name, words_per_chunk=1000) for name in ("large", "small"))
    with MockEndpoint(large) as original, MockEndpoint(small) as pruned:
        addresses = Address(original.url, name="a"), Address(pruned.url, name="b")
        with connect(*addresses, options, tmp_path / "run") as context:
            outcome = run_suites(context, [suites[name] for name in NAMES])
    assert outcome.died is None
    found = {result.suite: result for result in outcome.results}
    assert tuple(found) == NAMES
    # Both mocks listen in one process, which has no size of each side.
    memory = found["memory"].unavailable
    assert set(memory) == set(Memory().metrics) and "one process" in memory["processes"]
    measured = [result for result in found.values() if result.suite != "memory"]
    assert all(result.measurements or "*" in result.unavailable for result in measured)
    # The server sends a whole answer in one chunk, which says nothing about its tokens.
    assert found["latency"].measurements[0].metric.name == "throughput"
    assert "several tokens per chunk" in found["latency"].unavailable["decode_ratio"]
    assert [len(m.items) for m in found["translation"].measurements] == [6, 6, 3, 3, 3, 3]
