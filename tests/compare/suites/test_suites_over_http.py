"""The suites over real HTTP: each measures something, or says why not."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.mock_endpoint import Habits, MockEndpoint

from vllm_kprune.compare.open_run import Address, open_run
from vllm_kprune.compare.run import CompareOptions, run_suites
from vllm_kprune.compare.suites import SUITES, latency

NAMES = ("translation", "accuracy", "latency", "memory", "input")


def test_every_suite_measures_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    monkeypatch.setattr(latency, "SETTLE_SECONDS", 0.0)
    options = CompareOptions(limit=3, concurrency=2, batches=(1, 5), accuracy=("no_such",))
    if find_spec("lm_eval"):
        rows = [{"prompt": f"{n}번?", "answer": "네"} for n in range(4)]
        path = tmp_path / "data" / "short.jsonl"
        path.parent.mkdir()
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        options = replace(options, accuracy=(), accuracy_data=path.parent)
    large, small = (Habits(name, words_per_piece=1000) for name in ("large", "small"))
    with MockEndpoint(large) as original, MockEndpoint(small) as pruned:
        addresses = Address(original.url, name="a"), Address(pruned.url, name="b")
        with open_run(*addresses, options, tmp_path / "run") as context:
            outcome = run_suites(context, [SUITES[name] for name in NAMES])
    assert outcome.died is None
    found = {result.suite: result for result in outcome.results}
    assert tuple(found) == NAMES
    assert all(result.measurements or "*" in result.unavailable for result in found.values())
    # The server sends a whole answer in one piece, which tells nothing of tokens.
    assert found["latency"].measurements[0].metric.name == "throughput"
    assert "several tokens in a piece" in found["latency"].unavailable["decode_ratio"]
    assert [len(m.items) for m in found["translation"].measurements] == [3] * 4
