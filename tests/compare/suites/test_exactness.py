"""The suite `exactness`: what is identical, what is a tie, and where other answers diverge."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mock_answers import Habits
from support.mock_endpoint import MockClient, compared, comparing
from support.synthetic_report import metrics_of, reported

from vllm_kprune.checkpoint.manifest import MANIFEST_NAME
from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.suites import exactness
from vllm_kprune.compare.suites.divergences import Divergence, find_divergence, lowered_places
from vllm_kprune.compare.suites.exactness import Exactness
from vllm_kprune.compare.suites.greedy_answers import Vocabularies
from vllm_kprune.errors import KPruneError
from vllm_kprune.tokenizer.bpe import BpeTokenizer

SUITE = Exactness()
KEPT = (0, 2, 3)


def reported_tokens(*tokens: str, best: dict[str, float] | None = None) -> Answer:
    """An answer with the texts of tokens; `best` replaces the best tokens of the last position."""
    top = [{token: -0.1, "other": -3.0} for token in tokens]
    if best:
        top[-1] = best
    return Answer(
        text="".join(tokens),
        token_texts=tokens,
        logprobs=tuple(place[min(place)] for place in top),
        top=tuple(top),
    )


def by_id(*ids: int, prompt: tuple[int, ...] = (0,), gap: float = 3.0, second: int = 0) -> Answer:
    """An answer with token ids; `second` is the second-best token at every position."""
    top = tuple({f"token_id:{i}": -0.1, f"token_id:{second}": -0.1 - gap} for i in ids)
    return Answer(text="".join(map(str, ids)), ids=ids, prompt_ids=prompt, top=top)


@pytest.fixture
def vocabularies() -> Vocabularies:
    vocab = {"a": 0, "漢": 1, "b": 2, "c": 3}
    return Vocabularies(BpeTokenizer({}, vocab, (), (), "byte_fallback"), KEPT)


@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=6))
@pytest.mark.slow
def test_an_answer_is_identical_to_itself(tokens: list[str]) -> None:
    assert find_divergence(reported_tokens(*tokens), reported_tokens(*tokens), None) == Divergence(
        "identical"
    )


@pytest.mark.parametrize(
    ("best", "verdict"),
    [
        ({"x": -0.7, "y": -0.8}, "tie"),
        ({"x": -0.5, "y": -1.5}, "different"),
        ({"x": -0.7, "z": -0.7}, "different"),
        ({"x": 20.1, "y": 20.0}, "tie"),  # raw logits, one step of bfloat16 apart
        ({"x": 2.1, "y": 2.0}, "different"),
    ],
    ids=["tie", "gap", "another", "logits", "small logits"],
)
def test_tokens_part_by_a_tie_if_the_gap_is_below_the_precision(
    best: dict[str, float], verdict: str
) -> None:
    divergence = find_divergence(
        reported_tokens("a", "b", "x", best=best), reported_tokens("a", "b", "y"), None
    )
    assert divergence.verdict == verdict
    assert divergence.character == 2
    assert "token 2: 'x' or 'y'" in divergence.detail


def test_an_answer_that_ends_early_is_different() -> None:
    assert (
        find_divergence(reported_tokens("a", "b"), reported_tokens("a"), None).reason
        == "unexplained"
    )


def test_without_tokens_the_texts_tell_where() -> None:
    divergence = find_divergence(Answer(text="서울은 크다"), Answer(text="서울은 작다"), None)
    assert (divergence.verdict, divergence.character) == ("different", 4)
    assert "no log-probabilities" in divergence.detail


def test_pruned_tokens_are_a_reason_where_the_vocabularies_are_known(
    vocabularies: Vocabularies,
) -> None:
    assert find_divergence(by_id(0, 2), by_id(0, 1), vocabularies).verdict == "identical"
    divergence = find_divergence(by_id(0, 1), by_id(0, 2), vocabularies)
    assert (divergence.verdict, divergence.reason) == ("different", "pruned token")
    assert "漢" in divergence.detail
    divergence = find_divergence(by_id(2, prompt=(1,)), by_id(2, prompt=(0,)), vocabularies)
    assert divergence.reason == "prompt"
    assert find_divergence(by_id(2, gap=0.1, second=3), by_id(2), vocabularies).verdict == "tie"
    assert (
        find_divergence(by_id(2, gap=0.9, second=3), by_id(2), vocabularies).reason == "unexplained"
    )


def test_log_probabilities_may_rise_but_not_fall() -> None:
    before = Answer(prompt_logprobs=(None, -1.0, -2.0, -3.0))
    assert lowered_places(before, before) == []
    higher = replace(before, prompt_logprobs=(None, -0.5, -1.9, -3.1))
    assert lowered_places(before, higher) == []
    lower = replace(before, prompt_logprobs=(None, -1.0, -2.5, -3.0))
    assert lowered_places(before, lower) == [2]
    assert lowered_places(before, Answer(prompt_logprobs=(None, -1.0))) is None
    assert lowered_places(before, Answer()) is None


def test_equal_endpoints_are_identical(tmp_path: Path) -> None:
    result = compared(SUITE, tmp_path, Habits(), Habits(), limit=12)
    metrics = metrics_of(reported(result))
    assert metrics["same"].effect.value == metrics["identical"].effect.value == 1
    assert metrics["unexplained"].effect.value == metrics["prompt_lowered"].effect.value == 0
    assert {example.labels["verdict"] for example in result.examples} == {"identical"}


def test_another_answer_is_different_and_shown_from_where_it_parts(tmp_path: Path) -> None:
    result = compared(SUITE, tmp_path, Habits(), Habits(wrong_language=0.3), limit=40)
    different = [e for e in result.examples if e.labels["verdict"] == "different"]
    share = metrics_of(reported(result))["unexplained"].effect.value
    assert share == pytest.approx(len(different) / 40)
    assert 0 < len(different) < 40
    for example in different:
        start = example.spans[0][0].start
        assert example.answers[0][:start] == example.answers[1][:start]
        assert example.answers[0][start] != example.answers[1][start]


@pytest.mark.parametrize("explained, verdict", [(True, "worse"), (False, "informational")])
def test_unexplained_answers_are_judged_where_reasons_can_be_told(
    explained: bool, verdict: str
) -> None:
    divergences = [Divergence("identical")] * 50 + [Divergence("different", "unexplained")] * 10
    found = [(f"{row}", (Answer(), Answer()), one) for row, one in enumerate(divergences)]
    measurements, _ = exactness._measure(found, explained=explained)
    result = SuiteResult("exactness", tuple(measurements))
    metrics = metrics_of(reported(result))
    assert metrics["unexplained"].verdict == verdict
    assert metrics["unexplained"].effect.value == pytest.approx(1 / 6)


def test_sixty_answers_that_are_all_explained_are_enough() -> None:
    found = [(f"{row}", (Answer(), Answer()), Divergence("identical")) for row in range(60)]
    measurements, _ = exactness._measure(found, explained=True)
    result = SuiteResult("exactness", tuple(measurements))
    assert metrics_of(reported(result))["unexplained"].words == "equal within 5 pp"


def test_endpoints_that_tell_only_text_are_compared_by_text(tmp_path: Path) -> None:
    missing = {name: "not in its answers" for name in ("logprobs", "prompt_logprobs", "token_ids")}

    def plain(name: str) -> MockClient:
        client = MockClient(name, habits=Habits(), missing=missing)
        answer = client.reply
        client.reply = lambda request: Answer(text=answer(request).text)
        return client

    with comparing(tmp_path, plain("original"), plain("pruned"), limit=8) as context:
        result = SUITE.run(context)
    assert metrics_of(reported(result))["identical"].effect.value == 1
    reason: Any = result.unavailable["prompt_logprob"]
    assert "not in its answers" in reason
    assert any("token_ids of the original endpoint" in note for note in result.notes)


def test_folders_that_a_server_tells_of_are_tried_and_those_of_the_user_must_fit(
    tmp_path: Path,
) -> None:
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / MANIFEST_NAME).write_text("{}")

    def clients() -> list[MockClient]:
        listed = {"data": [{"id": "model", "root": str(overlay)}]}
        return [
            MockClient(name, habits=Habits(), paths={"/v1/models": listed})
            for name in ("original", "pruned")
        ]

    with comparing(tmp_path / "told", *clients(), limit=4) as context:
        notes = SUITE.run(context).notes
    assert any(str(overlay) in note for note in notes)
    named = {"original_folder": overlay, "pruned_folder": overlay}
    with (
        comparing(tmp_path / "named", *clients(), limit=4, **named) as context,
        pytest.raises(KPruneError, match=str(overlay)),
    ):
        SUITE.run(context)
