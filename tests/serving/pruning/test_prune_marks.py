"""Each text of a request is searched for marks once, whatever is done with it afterwards."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.prune_cases import LONG, LengthScores, pruning_of

from vllm_kprune.prompt import segments
from vllm_kprune.prompt.marks import Segment
from vllm_kprune.prompt.segments import RequestTexts
from vllm_kprune.serving.pruning.endpoint import Preview, read_body
from vllm_kprune.serving.pruning.service import PromptPruning

pytestmark = pytest.mark.usefixtures("vllm_ready")

MARKED = f'Read: <kprune keep="0.5">{LONG}</kprune> Where?'
CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": [{"type": "text", "text": "U1"}, {"type": "text", "text": MARKED}]},
    {"role": "assistant", "content": LONG},
    {"role": "user", "content": "Where did the cat sit?"},
]
DOCUMENTS = [{"title": "T", "text": f"<kprune>{LONG}</kprune>"}]
REQUESTS = {
    "chat": (RequestTexts(CHAT, DOCUMENTS), ["S", "U1", MARKED, LONG, CHAT[3]["content"],
                                             DOCUMENTS[0]["text"]]),
    "completion": (RequestTexts(prompt=MARKED), [MARKED]),
    "plain chat": (RequestTexts(CHAT[2:]), [LONG, CHAT[3]["content"]]),
}  # fmt: skip


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each text was searched for marks."""
    seen: Counter[str] = Counter()

    def count(text: str) -> list[Segment]:
        seen[text] += 1
        return split(text)

    split = segments.split_marks
    monkeypatch.setattr(segments, "split_marks", count)
    return seen


def generate(pruning: PromptPruning, texts: RequestTexts) -> Any:
    return asyncio.run(pruning.prune([texts], {"kprune_keep": 0.6}))


def generate_offline(pruning: PromptPruning, texts: RequestTexts) -> Any:
    return pruning.prune_blocking([texts], {"kprune_keep": 0.6})


def preview(pruning: PromptPruning, texts: RequestTexts) -> Any:
    body = {name: value for name, value in vars(texts).items() if value is not None}
    split, asked = read_body(pruning, {**body, "keep": 0.6})
    return Preview(pruning, asked)(split, lambda: False)


@pytest.mark.parametrize("route", [generate, generate_offline, preview])
@pytest.mark.parametrize("kind", REQUESTS)
def test_marks_are_split_once(
    splits: Counter[str], kind: str, route: Callable[[PromptPruning, RequestTexts], Any]
) -> None:
    texts, expected = REQUESTS[kind]
    scorer = LengthScores(uses_query=True)
    route(pruning_of(scorer), texts)
    assert scorer.asked, "nothing was ranked"
    assert splits == Counter(expected)


@pytest.mark.parametrize("why", ["off", "below the break-even", "failure"])
def test_marks_are_split_once_if_nothing_is_pruned(splits: Counter[str], why: str) -> None:
    scorer = LengthScores()

    def fail(cancelled: Callable[[], bool]) -> None:
        raise RuntimeError("no")

    scorer.before = fail
    pruning = pruning_of(scorer, min_tokens=9999 if why == "below the break-even" else 0)
    keep = "off" if why == "off" else 0.6
    prepared = asyncio.run(pruning.prune([RequestTexts(prompt=MARKED)], {"kprune_keep": keep}))
    assert prepared.texts == [RequestTexts(prompt=f"Read: {LONG} Where?")]
    assert splits == Counter([MARKED])
