"""From how many tokens on pruning pays: the arithmetic, and the measurement on a made-up engine."""

import asyncio
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.prune_cases import LengthScores, pruning_of

from vllm_kprune.serving.pruning import break_even as prune_break_even
from vllm_kprune.serving.pruning.break_even import settle
from vllm_kprune.serving.pruning.cost import NEVER, Line, break_even_tokens

pytestmark = pytest.mark.usefixtures("vllm_ready")

seconds = st.floats(1e-6, 10)
per_token = st.floats(1e-7, 1e-1)
shares = st.sampled_from([0.3, 0.5, 0.7, 0.9])


def saved(prefill: Line, ranking: Line, keep: float, tokens: float) -> float:
    """Seconds that pruning saves: prefill of what is dropped, less the ranking."""
    dropped = (1 - keep) * tokens * prefill.per_token
    return dropped - (ranking.fixed + ranking.per_token * tokens)


@given(st.builds(Line, seconds, per_token), st.builds(Line, seconds, per_token), shares)
def test_pruning_saves_time_above_the_break_even_and_not_below(
    prefill: Line, ranking: Line, keep: float
) -> None:
    tokens = break_even_tokens(prefill, ranking, keep)
    if tokens is None:
        assert saved(prefill, ranking, keep, NEVER / 2) < ranking.fixed * 1e-6
    else:
        assert saved(prefill, ranking, keep, tokens + 1) > 0
        assert saved(prefill, ranking, keep, max(tokens - 1, 0)) < 0


@given(st.builds(Line, seconds, per_token), st.integers(1, 4096), st.integers(1, 4096))
def test_a_line_is_found_again_from_two_of_its_points(line: Line, one: int, other: int) -> None:
    assume(one < other)
    points = [(n, line.fixed + line.per_token * n) for n in (one, other)]
    found = Line.through(points[0], points[1])
    for n, value in points:
        assert found.fixed + found.per_token * n == pytest.approx(value)


def test_a_line_through_noise_never_falls() -> None:
    assert Line.through((10, 2.0), (20, 1.0)) == Line(2.0, 0.0)
    assert Line.through((10, 2.0), (10, 3.0)) == Line(0.0, 0.2)


class Engine:
    """Reads a prompt in `per_token` seconds per token, and records the salts of prompts."""

    def __init__(self, per_token: float, fails: bool = False) -> None:
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 900, max_model_len=1024)
        self._per_token, self._fails = per_token, fails
        self.salts: list[str] = []

    async def generate(self, prompt: Any, params: Any, name: str) -> Any:
        if self._fails:
            raise RuntimeError("engine is dead")
        assert params.max_tokens == 1
        self.salts.append(prompt["cache_salt"])
        await asyncio.sleep(self._per_token * len(prompt["prompt_token_ids"]))
        yield None


@pytest.mark.slow
def test_a_slow_engine_makes_pruning_pay_early() -> None:
    pruning, engine = pruning_of(LengthScores(), min_tokens="auto"), Engine(2e-3)
    found = asyncio.run(settle(engine, pruning))
    assert found
    assert found.prefill.per_token == pytest.approx(2e-3, rel=0.5)
    assert found.tokens == pruning.min_tokens
    assert 64 <= found.tokens < 1000
    assert len(set(engine.salts)) == len(engine.salts)  # no cached prefix is read


@pytest.mark.slow
def test_where_ranking_is_slower_than_reading_nothing_is_pruned_unasked(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_break_even.logger, "propagate", True)
    scorer = LengthScores()
    scorer.before = lambda cancelled: time.sleep(2e-4 * len(scorer.asked[-1][0]))
    pruning = pruning_of(scorer, min_tokens="auto")
    found = asyncio.run(settle(Engine(1e-5), pruning))
    assert found
    assert found.tokens is None
    assert found.as_dict()["tokens"] is None
    assert pruning.min_tokens == NEVER
    assert "saves no time here" in caplog.text


def test_what_cannot_be_measured_is_assumed_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_break_even.logger, "propagate", True)
    pruning = pruning_of(LengthScores(), min_tokens="auto")
    assumed = pruning.min_tokens
    assert asyncio.run(settle(Engine(0, fails=True), pruning)) is None
    assert pruning.min_tokens == assumed
    assert f"engine is dead), so {assumed} tokens are assumed" in caplog.text
    assert logging.WARNING in {record.levelno for record in caplog.records}
