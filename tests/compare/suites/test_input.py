"""The suite `input`: one endpoint with its pruner off and on."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.mock_endpoint import MockClient, comparing, run_suite, scoring

from vllm_kprune.compare.endpoint.messages import Answer, Endpoint, EndpointDied, Request
from vllm_kprune.compare.measurements import SuiteResult
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.suites.input import InputPruning
from vllm_kprune.compare.suites.input_quality import contains, marked
from vllm_kprune.compare.suites.passages import passages_of
from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.segments import Segment, split_marks

PRUNER = {"/kprune": {"active": True, "input_pruner": {"available": True}}}


def prunes(request: Request) -> Answer:
    """Cuts off the marked text at the keep rate, and makes each answer token less likely by it."""
    keep = request.extra["vllm_xargs"]["kprune_keep"]
    rate = 1.0 if keep == "off" else keep
    found = re.fullmatch(r"<kprune>(.*)</kprune>(.*)", request.prompt, re.DOTALL)
    assert found
    tokens = round(rate * len(found[1])) + len(found[2])
    logprobs = (None, *[-1 / rate] * (tokens - 1)) if request.prompt_logprobs is not None else None
    text = " 1957년" if rate == 1 else " 모른다"
    return Answer(text=text, prompt_tokens=tokens, prompt_logprobs=logprobs)


def nobody(request: Request) -> Answer:
    raise AssertionError("asked")


def run(
    folder: Path, reply: Any, missing: Any = None, paths: Any = PRUNER, **options: Any
) -> SuiteResult:
    pruned = MockClient("pruned", reply, paths=paths, missing=missing)
    return run_suite(InputPruning(), folder, MockClient("original", nobody), pruned, **options)


@given(st.text(st.sampled_from("a \\<>/kprune가"), max_size=30))
def test_any_text_comes_back_whole_from_between_the_marks(text: str) -> None:
    assert split_marks(marked(text)) == [Segment(text, marked=True)]


def test_tokens_saved_and_quality_lost_are_of_the_same_passages(tmp_path: Path) -> None:
    found = run(tmp_path, prunes, keep_rates=(0.8, 0.5))
    assert [m.metric.name for m in found.measurements] == [
        *("quality@0.8", "saved@0.8", "quality@0.5", "saved@0.5")
    ]
    assert found.main == "quality@0.5"  # where a loss shows first
    quality, saved = found.measurements[2:]
    assert quality.items == saved.items and len(quality.items) >= 12
    assert np.allclose(quality.original, -1.0) and np.allclose(quality.pruned, -2.0)
    assert saved.pruned is None
    share = saved.original[:, 0] / saved.original[:, 1]
    assert (share > 0.4).all() and (share < 0.5).all()  # the question is never pruned


def test_without_log_probabilities_answers_are_looked_through(tmp_path: Path) -> None:
    missing = {"prompt_logprobs": "not in its answers"}
    found = run(tmp_path, prunes, missing, keep_rates=(0.5,), languages=("ko",))
    quality = found.measurements[0]
    assert quality.metric.unit == "share"
    assert quality.original.sum() == 1 and quality.pruned.sum() == 0
    assert {e.labels["keep"] for e in found.examples} == {"0.5"}


def test_a_resumed_run_asks_nothing_again(tmp_path: Path) -> None:
    first = run(tmp_path, prunes, keep_rates=(0.5,), limit=3)
    again = run(tmp_path, nobody, keep_rates=(0.5,), limit=3)
    for a, b in zip(first.measurements, again.measurements, strict=True):
        assert np.array_equal(a.original, b.original) and a.items == b.items


def test_a_changed_file_is_not_answered_from_the_journal(tmp_path: Path) -> None:
    path, asked = tmp_path / "rows.jsonl", []

    def answers(request: Request) -> Answer:
        asked.append(request.prompt)
        return prunes(request)

    row = {"id": "x", "context": "Ada wrote it.", "question": "Who?", "answer": "Ada"}
    for question in ("Who?", "Who was it?"):
        path.write_text(json.dumps(row | {"question": question}), encoding="utf-8")
        run(tmp_path / "run", answers, keep_rates=(0.5,), data=path)
    assert len(asked) == 2 * len([prompt for prompt in asked if "Who?" in prompt]) == 8


def test_no_more_requests_are_under_way_than_asked_for(tmp_path: Path) -> None:
    at_once = []

    class Counting(MockClient):
        async def ask(self, request: Request) -> Answer:
            at_once.append(1)
            at_most.append(len(at_once))
            await asyncio.sleep(0)
            at_once.pop()
            return await super().ask(request)

    at_most: list[int] = []
    pruned = Counting("pruned", prunes, paths=PRUNER)
    with comparing(tmp_path, MockClient("original", nobody), pruned, concurrency=2) as context:
        InputPruning().run(context)
    assert max(at_most) == 2


def test_passages_without_an_answer_are_left_out(tmp_path: Path) -> None:
    def sometimes(request: Request) -> Answer:
        failed = request.extra["vllm_xargs"]["kprune_keep"] == 0.5 and "등대" in request.prompt
        return Answer(error="HTTP 500") if failed else prunes(request)

    found = run(tmp_path, sometimes, keep_rates=(0.8, 0.5))
    assert len(found.measurements[0].items) - len(found.measurements[2].items) == 1


def test_a_server_that_dies_is_told_and_nothing_is_made_up(tmp_path: Path) -> None:
    def dies(request: Request) -> Answer:
        raise EndpointDied(Endpoint("pruned", "http://127.0.0.1:1/v1", "m"), "gone")

    found = run(tmp_path, dies, limit=2)
    assert found.measurements == ()
    assert found.unavailable["*"]
    assert run(tmp_path, prunes, limit=2).measurements


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        ({}, "has no /kprune"),
        ({"/kprune": {"active": True}}, "no input pruner"),
        ({"/kprune": {"input_pruner": {"available": "yes"}}}, "no input pruner"),
    ],
)
def test_without_a_pruner_nothing_is_asked(tmp_path: Path, paths: Any, says: str) -> None:
    assert says in run(tmp_path, nobody, paths=paths).unavailable["*"]


def test_our_own_passages_have_their_answers(tmp_path: Path) -> None:
    passages = passages_of(None, CommonOptions())
    assert len(passages) >= 12 and all(contains(p.context, p.answer) for p in passages)
    assert {p.language for p in passages} == {"ko", "en"}


def test_files_of_passages_are_read_and_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"context": "Ada wrote it.", "question": "Who?", "answer": "Ada"}
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | {'id': 'x'})}\n", encoding="utf-8")
    assert [p.id for p in passages_of(path, CommonOptions())] == ["1", "x"]
    path.write_text(json.dumps(row | {"answer": 3}), encoding="utf-8")
    with pytest.raises(KPruneError, match=r"rows\.jsonl:1: expected text in `answer`"):
        passages_of(path, CommonOptions())


def test_scoring_endpoints_without_marks_would_be_noticed() -> None:
    assert scoring(Request("completion", prompt="ab", prompt_logprobs=0)).prompt_tokens == 2


def test_half_a_character_in_a_file_is_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"context": "\N{GRINNING FACE} Ada", "question": "Who?", "answer": "Ada"}
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row | {'answer': chr(0xD800)})}\n")
    with pytest.raises(
        KPruneError, match=r"rows\.jsonl:2 is not JSON: half a character \(\\ud800\)"
    ):
        passages_of(path, CommonOptions())
