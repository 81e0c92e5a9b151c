"""The soak: its traffic and its judgement, without a server; and a minute of it with one."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_every_kind_of_request_comes_up_and_a_seed_gives_the_same() -> None:
    from soak_traffic import KINDS, draw

    runs = []
    for _ in range(2):
        chance = random.Random(3)
        runs.append([draw(chance, "m", {"languages": "en,ko"}) for _ in range(300)])
    assert runs[0] == runs[1]
    assert {asked.kind for asked in runs[0]} == set(KINDS)
    for asked in runs[0]:
        assert "seed" not in json.loads(asked.body)  # vLLM's CPU engine dies of some


def test_a_character_that_the_guard_does_not_allow_is_found() -> None:
    from soak_traffic import Asked, foreign

    asked = Asked("chat", "/", b"", guard={"languages": "en,ko"})
    assert foreign(asked, "Seoul은 서울이다. 12\ufffd") == set()
    assert foreign(asked, "서울 北京") == {"北", "京"}


def test_answers_may_only_part_where_two_tokens_are_as_good() -> None:
    from soak import _tied
    from soak_traffic import Answer

    def answer(*steps: tuple[str, float]) -> Answer:
        return Answer(200, "".join(token for token, _ in steps), steps, 1.0)

    one = answer(("a", 3.0), ("b", 0.001), ("c", 3.0))
    assert _tied(one, answer(("a", 3.0), ("x", 2.0)))
    assert not _tied(one, answer(("y", 2.0), ("b", 0.001)))
    assert not _tied(one, answer(("a", 3.0)))


def test_the_slope_of_memory_has_an_interval_that_covers_the_truth() -> None:
    from soak import growth

    covered = 0
    for seed in range(60):
        noise = random.Random(seed)
        samples = [(2.0 * n, int(1e9 + 10_000 * n + noise.gauss(0, 1e5))) for n in range(400)]
        low, high = growth(samples)["interval"]
        covered += low <= 18.0 <= high  # 10 kB in 2 s are 18 MB in an hour
    assert covered >= 52
    flat = growth([(2.0 * n, 10**9 + n % 7) for n in range(400)])
    assert flat["grows"] is False
    assert growth([(2.0 * n, 10**9 + n * 100_000) for n in range(400)])["grows"] is True


@pytest.mark.server
@pytest.mark.exhaustive
def test_a_minute_of_it_has_no_defect(smollm2: Path, tmp_path: Path) -> None:
    summary = tmp_path / "soak.json"
    command = [sys.executable, BENCHMARKS / "soak.py", smollm2, "--minutes", "1", "--at-once", "8",
               "--json", summary]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(summary.read_text())
    assert found["defects"] == {}, found["examples"]
    assert found["counts"]["greedy answers"] > 10
    assert done.returncode == 0
