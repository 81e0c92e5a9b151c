"""What vLLM's runners tell the guard besides its interface: ends of requests, forced tokens."""

import gc
import weakref
from inspect import unwrap
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.guard_engines import (
    NUM_ROWS,
    REQUEST_OPTIONS,
    Engine,
    expected_refusals,
    sampling_params,
)
from support.slot_runner import SLOTS, Runner

from vllm_kprune.serving.compat import seams_guard
from vllm_kprune.serving.guard.runner_hooks import runner_wraps

pytestmark = pytest.mark.usefixtures("vllm_ready")

MOST_POLICIES = 16


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> "weakref.WeakSet[Any]":
    """The automatons that a test was given and that somebody still holds."""
    from vllm_kprune.serving.guard import requests

    alive, find = weakref.WeakSet[Any](), requests.stored_automaton

    def remember(*args: Any) -> Any:
        automaton = find(*args)
        alive.add(automaton)
        return automaton

    monkeypatch.setattr(requests, "stored_automaton", remember)
    return alive


@pytest.mark.slow
def test_many_policies_one_after_another_are_let_go(
    engine: Engine, built: "weakref.WeakSet[Any]"
) -> None:
    runner, text = Runner(engine), engine.ids("ok")
    for n in range(MOST_POLICIES + 8):
        # As in a server with room: each request gets a slot of its own, and then ends.
        options = {"kprune_languages": "ko", "kprune_allow": chr(0x4E00 + n)}
        runner.enter(n % SLOTS, text, len(text), options)
        runner.step([n % SLOTS])
        runner.leave(n % SLOTS)
    gc.collect()
    assert len(built) <= MOST_POLICIES


def test_policies_that_are_in_use_stay(engine: Engine) -> None:
    runner, text = Runner(engine), engine.ids("ok")
    runner.enter(0, text, len(text), REQUEST_OPTIONS[2])
    for n in range(MOST_POLICIES + 2):
        options = {"kprune_languages": "ko", "kprune_allow": chr(0x4E00 + n)}
        runner.enter(1, text, len(text), options)
    runner.check([0])


def test_a_runner_says_when_a_request_ends(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu import buffer_utils
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcRequestState
    from vllm.v1.worker.gpu.states import RequestState

    from vllm_kprune.serving.guard.processor import LanguageGuard

    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)  # for want of a GPU
    states = RequestState(SLOTS, 64, 64, 0, NUM_ROWS, torch.device("cpu"))
    guard = LanguageGuard(engine.config, LogitsProcRequestState.from_request_state(states))
    removed = list[int]()
    monkeypatch.setattr(guard._slots, "remove_request", removed.append)
    # Unwrapped: the plugin may have been registered in this process.
    around, remove = runner_wraps()[seams_guard.V2_REMOVE], unwrap(RequestState.remove_request)
    # vLLM asks for requests that it does not have, before it adds them.
    assert around(remove, states, "a") is None
    states.add_request("a", 2, [1, 2], 0, 10)
    slot = states.req_id_to_index["a"]
    assert around(remove, states, "a") == slot
    assert removed == [slot]


def test_a_runner_without_a_guard_is_left_alone() -> None:
    around = runner_wraps()[seams_guard.V2_REMOVE]
    assert around(lambda states, name: 3, SimpleNamespace(all_token_ids=object()), "a") == 3


def force(logits: torch.Tensor, token_id: int) -> torch.Tensor:
    logits[:, token_id] = 1e9
    return logits


def cut_and_whole(engine: Engine) -> tuple[list[int], list[int]]:
    """A text that ends inside of a character, and the same text with all of it."""
    whole = engine.ids("서울")
    return whole[:-1], whole


def test_a_thinking_budget_waits_for_the_end_of_a_character(engine: Engine) -> None:
    runner = Runner(engine)
    for slot, text in enumerate(cut_and_whole(engine)):
        runner.enter(slot, text, len(text), None)
    runner.enter(2, engine.ids("中")[:-1], 2, {"kprune_languages": "off"})
    logits = runner.step([0, 1, 2])
    around = runner_wraps()[seams_guard.V2_BUDGET]
    budget = SimpleNamespace(
        req_states=runner.states,
        enabled=True,
        use_thinking_budget=np.ones(SLOTS, np.bool_),
        reasoning_end_token_ids=torch.tensor([engine.eos, 5]),
    )
    context = SimpleNamespace(idx_mapping_np=np.array([0, 1, 2]))
    around(lambda _, values, __: force(values, engine.eos), budget, logits, context)
    assert logits[:, engine.eos].tolist() == [-torch.inf, 1e9, 1e9]
    refused = expected_refusals(engine, None, cut_and_whole(engine)[0])
    assert torch.equal(logits[0] == -torch.inf, refused)


def test_a_thinking_budget_waits_on_the_v1_runner_too(engine: Engine) -> None:
    from vllm_kprune.serving.guard.processor import LanguageGuard

    guard = LanguageGuard(engine.config, torch.device("cpu"), False)
    added = []
    for index, text in enumerate(cut_and_whole(engine)):
        params = sampling_params()
        params.update_from_generation_config({}, engine.eos)
        added.append((index, params, text, []))
    guard.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    budget = SimpleNamespace(has_tracked_requests=lambda: True, think_end_token_ids=[engine.eos])
    metadata = SimpleNamespace(
        thinking_budget_state_holder=budget,
        logitsprocs=SimpleNamespace(non_argmax_invariant=[guard, object()]),
    )
    around = runner_wraps()[seams_guard.V1_PROCESS]
    logits = around(
        lambda _, values, *__: force(guard.apply(values), engine.eos),
        *(None, torch.zeros(2, NUM_ROWS), metadata, False),
    )
    assert logits[:, engine.eos].tolist() == [-torch.inf, 1e9]


def test_pipeline_stages_that_do_not_sample_build_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_kprune.serving.guard import processor

    monkeypatch.setattr(processor, "is_last_stage", lambda: False)
    monkeypatch.setattr(processor, "Guards", None)
    guard = processor.LanguageGuard(engine.config, torch.device("cpu"), False)
    guard.update_state(
        SimpleNamespace(removed=[], added=[(0, sampling_params(), [], [])], moved=[])
    )
    guard.apply_staged_writes()
    assert not guard.add_request(0, sampling_params())
    logits = torch.zeros(1, NUM_ROWS)
    assert guard.apply(logits) is logits
    guard.withdraw(logits, [1])
