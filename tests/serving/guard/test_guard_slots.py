"""The guard on the V2 runner's interface, with real tensors: slots, rows, drafts, resumption."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.guard_engines import (
    NUM_ROWS,
    PROMPTS,
    REQUEST_OPTIONS,
    Engine,
    expected_refusals,
)
from support.slot_runner import LENGTH, SLOTS, Runner, pick

pytestmark = pytest.mark.usefixtures("vllm_ready")

SETTINGS = settings(max_examples=30)


requests = st.tuples(st.sampled_from(PROMPTS), st.sampled_from(REQUEST_OPTIONS))


def enter(runner: Runner, slot: int, request: tuple[tuple[str, int], Any]) -> None:
    (text, cut), request_options = request
    ids = runner.engine.prompt(text, cut)
    runner.enter(slot, ids, len(ids), request_options)


@SETTINGS
@given(wanted=st.lists(requests, min_size=1, max_size=12), seed=st.integers(0, 1 << 20))
@pytest.mark.slow
def test_rows_in_any_order_refuse_what_their_slots_text_refuses(
    engine: Engine, wanted: list[Any], seed: int
) -> None:
    runner, draw = Runner(engine), random.Random(seed)
    for n, request in enumerate(wanted):  # slots are used again by later requests
        enter(runner, n % SLOTS, request)
        for _ in range(draw.randrange(6)):
            order = draw.sample(sorted(runner.texts), draw.randint(1, len(runner.texts)))
            logits = runner.check(order)
            for row, slot in enumerate(order):
                runner.commit(slot, [pick(engine, logits[row], draw)])


@SETTINGS
@given(wanted=st.lists(requests, min_size=1, max_size=SLOTS), seed=st.integers(0, 1 << 20))
@pytest.mark.slow
def test_drafts_have_a_row_each_and_only_the_accepted_ones_stay(
    engine: Engine, wanted: list[Any], seed: int
) -> None:
    runner, draw = Runner(engine, drafts=3), random.Random(seed)
    for slot, request in enumerate(wanted):
        enter(runner, slot, request)
    for _ in range(6):
        order = draw.sample(sorted(runner.texts), len(runner.texts))
        drafts = {slot: drafted(runner, slot, draw) for slot in order}
        logits, row = runner.check(order, drafts), 0
        for slot in order:
            accepted = draw.randint(0, len(drafts[slot]))
            last = pick(engine, logits[row + accepted], draw)
            runner.commit(slot, [*drafts[slot][:accepted], last])
            row += 1 + len(drafts[slot])


def drafted(runner: Runner, slot: int, draw: random.Random) -> list[int]:
    """Up to three tokens that may follow; a draft model knows no guard, but the target accepts
    only what the guard leaves."""
    tokens: list[int] = []
    for _ in range(draw.randrange(4)):
        text = [*runner.texts[slot], *tokens]
        refused = expected_refusals(runner.engine, runner.request_options[slot], text)
        tokens.append(pick(runner.engine, torch.where(refused, -torch.inf, 0.0), draw))
    return tokens


def test_a_request_that_was_preempted_inside_a_character_goes_on_inside_it(engine: Engine) -> None:
    runner = Runner(engine)
    prompt, answer = engine.ids("서울 "), engine.ids("한국")[:-1]
    runner.enter(2, [*prompt, *answer], len(prompt), None)
    logits = runner.check([2])
    (left,) = [set(torch.nonzero(row > -torch.inf).flatten().tolist()) for row in logits]
    assert engine.ids("국")[-1] in left
    assert engine.eos not in left


def test_a_prompt_is_read_before_the_device_has_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.worker.gpu import buffer_utils

    runner, text = Runner(engine), engine.ids("가" * 20)[:-1]
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)  # for want of a GPU
    staged = buffer_utils.StagedWriteTensor((SLOTS, LENGTH), torch.int32, torch.device("cpu"))
    tensor = runner.states.all_token_ids
    object.__setattr__(runner.states, "all_token_ids", staged)
    for slot in (3, 1):
        staged.stage_write(slot, 0, text[slot:])
        runner.enter(slot, text[slot:], 4, None, staged=True)
    runner.guard.apply_staged_writes()
    object.__setattr__(runner.states, "all_token_ids", tensor)
    runner.check([1, 3])


def test_a_slot_keeps_nothing_of_the_request_before(engine: Engine) -> None:
    runner = Runner(engine)
    assert runner.enter(1, engine.ids("中")[:1], 1, REQUEST_OPTIONS[2])
    runner.check([1])
    assert not runner.enter(1, engine.ids("ok"), 2, {"kprune_languages": "off"})
    assert torch.isfinite(runner.step([1])).all()


def test_a_chunk_of_a_prompt_before_its_end_does_no_harm(engine: Engine) -> None:
    runner = Runner(engine)
    text = engine.ids("가나다라")
    runner.enter(0, text, len(text), None)
    whole, runner.texts[0] = runner.texts[0], text[:4]
    runner.step([0])
    runner.texts[0] = whole
    runner.check([0])


def test_a_row_that_has_no_token_left_gets_its_end_token(engine: Engine) -> None:
    runner = Runner(engine)
    foreign = int(torch.nonzero(expected_refusals(engine, None, []))[0])
    runner.enter(0, engine.ids("ok"), 2, None, allowed_token_ids=[foreign])
    runner.guard.apply_staged_writes()
    context = SimpleNamespace(
        expanded_idx_mapping=torch.tensor([0]),
        idx_mapping_np=np.array([0]),
        expanded_local_pos=torch.tensor([0]),
        input_ids=torch.tensor([0]),
        pos=torch.tensor([1]),
    )
    logits = torch.full((1, NUM_ROWS), -torch.inf)
    logits[0, foreign] = 1.0
    after = runner.guard.apply(logits, context)
    assert torch.nonzero(after[0] > -torch.inf).flatten().tolist() == [engine.eos]
