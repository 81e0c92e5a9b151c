"""The job of one request: segments by themselves, budgets, the cache, the question."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prune_cases import LONG, LengthScores, job_of, tokens

from vllm_kprune.prompt.cache import SegmentCache
from vllm_kprune.prompt.segments import RequestTexts
from vllm_kprune.serving.pruning.job import PrunedRequest

CHAT = (
    {"role": "system", "content": LONG},
    {"role": "user", "content": LONG * 2},
    {"role": "assistant", "content": LONG * 3, "tool_calls": [{"id": "1"}]},
    {"role": "user", "content": "Where did the cat sit?"},
)


def run(texts: Any, scorer: LengthScores | None = None, **how: Any) -> PrunedRequest:
    return job_of(texts, scorer or LengthScores(), **how)(lambda: False)


@given(
    repeats=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    keep=st.sampled_from([0.2, 0.5, 0.8]),
)
def test_counts_are_those_of_the_texts(repeats: list[int], keep: float) -> None:
    prompts = [RequestTexts(prompt=LONG * n) for n in repeats]
    pruned = run(prompts, keep=keep)
    kept = [one.prompt or "" for one in pruned.texts]
    assert pruned.tokens_before == sum(tokens(LONG * n) for n in repeats)
    assert pruned.tokens_after == sum(tokens(text) for text in kept)
    assert pruned.segments == len(prompts)
    assert pruned.hits + pruned.misses == len(prompts)
    assert pruned.misses == len(set(repeats))


def test_a_chat_keeps_its_system_prompt_and_last_question() -> None:
    pruned = run(RequestTexts(CHAT), keep=0.5)
    (texts,) = pruned.texts
    assert texts.messages
    assert [m["role"] for m in texts.messages] == [m["role"] for m in CHAT]
    assert texts.messages[0] == CHAT[0]
    assert texts.messages[3] == CHAT[3]
    assert texts.messages[2]["tool_calls"] == CHAT[2]["tool_calls"]
    assert pruned.segments == 2
    assert pruned.tokens_before == tokens(LONG * 2) + tokens(LONG * 3)


def test_a_segment_is_pruned_the_same_whatever_is_around_it() -> None:
    alone = run(RequestTexts(CHAT[1:2] + CHAT[3:]), keep=0.5).texts[0].messages
    within = run(RequestTexts(CHAT), keep=0.5).texts[0].messages
    assert alone and within
    assert alone[0] == within[1]


def test_documents_are_pruned_but_for_their_titles() -> None:
    document = {"title": LONG, "text": LONG * 2}
    (texts,) = run(RequestTexts(CHAT[3:], [document]), keep=0.5).texts
    assert texts.documents
    assert texts.documents[0]["title"] == LONG
    assert 0 < len(texts.documents[0]["text"]) < len(LONG * 2)


def test_marks_take_the_place_of_the_defaults_and_name_their_own_rate() -> None:
    marked = f'Read: <kprune keep="0.5">{LONG}</kprune><kprune>{LONG * 2}</kprune> {LONG}'
    scorer = LengthScores()
    pruned = run(RequestTexts(prompt=marked), scorer)
    assert [text for text, _ in scorer.asked] == [LONG]  # the other rate is 1
    assert pruned.tokens_after <= 0.5 * pruned.tokens_before + 1
    prompt = pruned.texts[0].prompt or ""
    assert prompt.startswith("Read: ")
    assert prompt.endswith(f"{LONG * 2} {LONG}")


@pytest.mark.parametrize("target", [1, 5, 20, 60])
def test_target_tokens_are_shared_by_all_segments(target: int) -> None:
    prompts = [RequestTexts(prompt=LONG * n) for n in (1, 3)]
    pruned = run(prompts, target_tokens=target)
    assert pruned.tokens_after <= max(target, 4)  # a word of each stays
    if target >= 20:
        assert pruned.tokens_after >= target - 4


def test_a_target_that_is_reached_changes_nothing() -> None:
    pruned = run(RequestTexts(prompt=LONG), target_tokens=tokens(LONG))
    assert pruned.texts[0].prompt == LONG
    assert pruned.segments == 0


def test_below_the_least_number_of_tokens_nothing_is_ranked() -> None:
    scorer = LengthScores()
    texts = RequestTexts(prompt=f"<kprune>{LONG}</kprune>")
    pruned = run(texts, scorer, keep=0.5, min_tokens=tokens(LONG) + 1)
    assert pruned.skipped == "below_break_even"
    assert pruned.texts == [RequestTexts(prompt=LONG)]
    assert scorer.asked == []
    assert run(texts, keep=0.5, min_tokens=tokens(LONG)).segments == 1


def test_what_would_keep_others_waiting_is_not_ranked() -> None:
    scorer, texts = LengthScores(), RequestTexts(prompt=LONG)
    assert run(texts, scorer, keep=0.5, max_tokens=tokens(LONG) - 1).skipped == "too_long"
    endless = job_of(RequestTexts(prompt=LONG * 9), scorer, keep=0.5, max_tokens=10)
    endless.count = lambda text: pytest.fail("even counting takes long")
    assert endless(lambda: False).skipped == "too_long"
    assert scorer.asked == []
    assert run(texts, keep=0.5, max_tokens=tokens(LONG)).segments == 1


def test_segments_count_together_towards_the_least_number() -> None:
    pruned = run(RequestTexts(CHAT), keep=0.5, min_tokens=tokens(LONG * 2) + tokens(LONG * 3))
    assert pruned.segments == 2


def test_what_would_be_pruned_is_known_without_ranking() -> None:
    scorer = LengthScores()
    wanted = job_of(RequestTexts(CHAT), scorer, keep=0.5).wanted
    assert [text for text, _ in wanted] == [LONG * 2, LONG * 3]
    assert {options.keep for _, options in wanted} == {0.5}
    assert job_of(RequestTexts(CHAT[3:]), scorer, keep=0.5).wanted == []
    assert job_of(RequestTexts(CHAT), scorer).wanted == []
    assert scorer.asked == []


def test_a_known_segment_is_not_ranked_again_unless_the_options_differ() -> None:
    cache, scorer = SegmentCache(1 << 20), LengthScores()
    texts = RequestTexts(prompt=LONG)
    first = run(texts, scorer, cache=cache, keep=0.5)
    again = run(texts, scorer, cache=cache, keep=0.5)
    other = run(texts, scorer, cache=cache, keep=0.6)
    assert [(one.hits, one.misses) for one in (first, again, other)] == [(0, 1), (1, 0), (0, 1)]
    assert again.texts == first.texts != other.texts
    assert (again.tokens_before, again.tokens_after) == (first.tokens_before, first.tokens_after)
    assert len(scorer.asked) == 2


def test_a_scorer_that_looks_from_the_question_gets_it() -> None:
    scorer = LengthScores(uses_query=True)
    run(RequestTexts(CHAT), scorer, keep=0.5)
    assert {query for _, query in scorer.asked} == {"Where did the cat sit?"}
    marked = f"<kprune>{LONG}</kprune>Where?"
    for texts in (
        RequestTexts(prompt=marked),
        RequestTexts([{"role": "user", "content": marked}]),
        RequestTexts([{"role": "user", "content": [{"type": "text", "text": marked}]}]),
    ):
        scorer = LengthScores(uses_query=True)
        run(texts, scorer, keep=0.5)
        assert scorer.asked == [(LONG, "Where?")]
    scorer = LengthScores()
    run(RequestTexts(CHAT), scorer, keep=0.5)
    assert {query for _, query in scorer.asked} == {None}
