"""One request cannot hold up the others: what it may cost, who goes first, who may choose."""

import asyncio
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from support.prune_cases import LONG, LengthScores, job_of, pruning_of

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.cache import SegmentCache
from vllm_kprune.prompt.segments import RequestTexts
from vllm_kprune.serving.endpoint import pruner_status
from vllm_kprune.serving.pruning.cost import ranking_seconds
from vllm_kprune.serving.pruning.service import Prepared, PromptPruning
from vllm_kprune.serving.pruning.worker import Busy, Worker

pytestmark = pytest.mark.usefixtures("vllm_ready")

MARKED = RequestTexts(prompt=f"<kprune>{LONG}</kprune>?")


def prune(pruning: PromptPruning, texts: RequestTexts = MARKED, **options: Any) -> Prepared:
    salt = options.pop("salt", None)
    extra = {f"kprune_{name}": value for name, value in options.items()}
    return asyncio.run(pruning.prune([texts], extra, salt))


@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.sampled_from(["rarity", "attention"]))))
def test_more_tokens_and_dearer_scorers_cost_more(jobs: list[tuple[int, str]]) -> None:
    for tokens, scorer in jobs:
        cost = ranking_seconds(tokens, scorer)
        assert 0 <= ranking_seconds(tokens, "rarity") <= cost
        assert cost <= ranking_seconds(tokens + 1, scorer)
        assert ranking_seconds(tokens, scorer, window=64) <= cost


def test_a_request_that_costs_too_much_is_sent_unpruned_and_counted() -> None:
    """30,000 tokens with the scorer attention held up everybody for 9.8 s."""
    assert ranking_seconds(30_000, "attention") > 2 > ranking_seconds(30_000, "rarity")
    before = REGISTRY.get_sample_value(
        "kprune_prune_requests_total", {"outcome": "skipped", "reason": "too_costly"}
    )
    scorer = LengthScores()
    pruning = pruning_of(scorer, pruner_seconds=0.01)
    text = RequestTexts(prompt=f"<kprune>{LONG * 60}</kprune>?")
    prepared = prune(pruning, text, keep=0.5, scorer="attention")
    assert prepared.texts == [RequestTexts(prompt=f"{LONG * 60}?")]
    assert scorer.asked == []
    after = REGISTRY.get_sample_value(
        "kprune_prune_requests_total", {"outcome": "skipped", "reason": "too_costly"}
    )
    assert after == (before or 0) + 1
    # The same text with a scorer that costs less, and where nobody else waits.
    assert prune(pruning_of(scorer), text, keep=0.5).pruned
    extra = {"kprune_keep": 0.5, "kprune_scorer": "attention"}
    blocking = pruning_of(LengthScores(), pruner_seconds=0.01).prune_blocking([text], extra)
    assert blocking.pruned
    assert blocking.pruned.skipped is None


def test_what_is_remembered_costs_nothing() -> None:
    cache = SegmentCache(1 << 20)
    texts = RequestTexts(prompt=f"<kprune>{LONG * 60}</kprune>?")
    whole = job_of(texts, LengthScores(), cache=cache, keep=0.5, scorer="attention")
    assert whole(lambda: False).skipped is None
    again = job_of(texts, LengthScores(), cache=cache, keep=0.5, scorer="attention")
    again.most_seconds = 0.0
    assert again(lambda: False).hits == 1
    other = job_of(texts, LengthScores(), cache=cache, keep=0.4, scorer="attention")
    other.most_seconds = 0.0
    assert other(lambda: False).skipped == "too_costly"


@given(st.text(max_size=2_000))
def test_the_cost_of_a_text_is_known_without_counting(text: str) -> None:
    job = job_of(RequestTexts(prompt=text), LengthScores(), keep=0.5, marks="off")
    job.count = lambda text: pytest.fail("counted")
    assert 0 <= job.expected_seconds <= ranking_seconds(2_000, "rarity")


class Held:
    def __init__(self) -> None:
        self.begun, self.let_go = Event(), Event()

    def __call__(self, cancelled: Callable[[], bool]) -> str:
        self.begun.set()
        assert self.let_go.wait(20)
        return "held"


def run_behind(costs: list[float], **how: Any) -> tuple[list[int], list[Any]]:
    """Jobs that arrive, one after the other, while another one runs: in which order they are done,
    and what became of each."""
    order: list[int] = []

    async def run() -> list[Any]:
        worker, held = Worker(1, **how), Held()
        first = asyncio.create_task(worker.run(held))
        assert await asyncio.to_thread(held.begun.wait, 20)
        tasks = []
        for number, seconds in enumerate(costs):
            job = lambda cancelled, number=number: order.append(number)  # noqa: E731
            tasks.append(asyncio.create_task(worker.run(job, seconds)))
            await asyncio.sleep(0)
        held.let_go.set()
        await first
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert worker.pending == 0
        worker.close()
        return found

    return order, asyncio.run(run())


def test_cheap_jobs_go_before_dear_ones_that_came_first() -> None:
    order, _ = run_behind([1.0, 0.0, 2.0, 0.0, 1.0])
    assert order == [1, 3, 0, 4, 2]


def test_a_full_queue_gives_up_its_dearest_job_for_a_cheaper_one() -> None:
    order, found = run_behind([1.0, 2.0, 0.0, 3.0], most_pending=3)
    assert isinstance(found[1], Busy)
    assert isinstance(found[3], Busy)
    assert order == [2, 0]


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), max_size=12), st.integers(2, 6))
def test_no_job_is_lost_or_done_twice(costs: list[float], most: int) -> None:
    order, found = run_behind(costs, most_pending=most)
    turned_away = [n for n, one in enumerate(found) if isinstance(one, Busy)]
    assert sorted(order + turned_away) == list(range(len(costs)))
    assert len(turned_away) == max(0, len(costs) - (most - 1))
    # Only dearer ones, or later ones of the same cost, are turned away.
    assert max((costs[n] for n in order), default=0) <= min(
        (costs[n] for n in turned_away), default=9
    )


@pytest.mark.parametrize(
    ("text", "options", "what"),
    [
        (LONG, {"scorer": "attention"}, "leave kprune_scorer out"),
        (LONG, {"keep": 0.1}, "leave kprune_keep out"),
        (LONG, {"keep": "off"}, "leave kprune_keep out"),
        (LONG, {"force_digits": 1}, "leave kprune_force_digits out"),
        (f'<kprune keep="0.1">{LONG}</kprune>', {}, "write <kprune>, without keep"),
        (f'<kprune keep="0.1"></kprune>{LONG}', {}, "write <kprune>, without keep"),
    ],
)
def test_a_fixed_pruner_leaves_requests_no_choice(
    text: str, options: dict[str, Any], what: str
) -> None:
    pruning = pruning_of(LengthScores(), keep=0.5, pruner_fixed=True)
    with pytest.raises(KPruneError, match=f"input pruner is fixed; {what}"):
        prune(pruning, RequestTexts(prompt=text), **options)


def test_a_fixed_pruner_prunes_as_the_server_says() -> None:
    pruning = pruning_of(LengthScores(), keep=0.5, pruner_fixed=True)
    assert prune(pruning).pruned
    assert prune(pruning, strict="on").pruned
    assert prune(pruning, marks="off").pruned
    status = pruner_status(pruning)
    assert status["fixed"] is True
    assert status["request_options"] == ["kprune_marks", "kprune_strict"]


def test_tenants_with_a_salt_of_their_own_do_not_share_what_is_remembered() -> None:
    """The time of a hit tells that somebody has sent the same text."""
    scorer = LengthScores()
    pruning = pruning_of(scorer)
    hits = []
    for salt in (None, None, "a", "a", "b", "a", None):
        pruned = prune(pruning, keep=0.5, salt=salt).pruned
        assert pruned
        hits.append(pruned.hits)
    assert hits == [0, 1, 0, 1, 0, 1, 1]
    assert len(scorer.asked) == 3


def test_the_status_does_not_tell_how_long_a_neighbours_text_is() -> None:
    pruning = pruning_of(LengthScores())
    before = pruner_status(pruning)
    prune(pruning, keep=0.5)
    assert pruning.cache.bytes > 0
    assert pruner_status(pruning) == before
