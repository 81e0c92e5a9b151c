"""The guard on the V1 runner, driven by vLLM's own batch: every move, against recomputation."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.guard_engines import (
    NUM_ROWS,
    PROMPTS,
    REQUEST_OPTIONS,
    Engine,
    expected_refusals,
    sampling_params,
)

from vllm_kprune.serving.environment import COUNTER_FOLDER
from vllm_kprune.serving.guard import requests as guard_requests
from vllm_kprune.serving.guard.counters import read_totals

pytestmark = pytest.mark.usefixtures("vllm_ready")

SETTINGS = settings(max_examples=40, stateful_step_count=30)
MAX_REQUESTS = 6


class Batch:
    """vLLM's persistent batch with a guard in it."""

    def __init__(self, engine: Engine) -> None:
        from vllm.v1.sample.logits_processor import LogitsProcessors
        from vllm.v1.worker.gpu_input_batch import InputBatch

        from vllm_kprune.serving.guard.processor import LanguageGuard

        self.engine = engine
        self.guard = LanguageGuard(engine.config, torch.device("cpu"), False)
        self.batch = InputBatch(
            max_num_reqs=MAX_REQUESTS,
            max_model_len=256,
            max_num_batched_tokens=256,
            device=torch.device("cpu"),
            vocab_size=NUM_ROWS,
            block_sizes=[16],
            max_num_blocks_per_req=[16],
            logitsprocs=LogitsProcessors([self.guard]),
            logitsprocs_need_output_token_ids=True,
        )
        self.states: dict[str, Any] = {}
        self.request_options: dict[str, dict[str, Any] | None] = {}

    def meet(
        self, name: str, prompt: list[int], request_options: dict[str, Any] | None, **options: Any
    ) -> None:
        """A new request, which `change` lets in."""
        from vllm.v1.worker.gpu_input_batch import CachedRequestState

        params = sampling_params(extra_args=request_options, **options)
        params.update_from_generation_config({}, self.engine.eos)
        self.request_options[name] = request_options
        self.states[name] = CachedRequestState(
            req_id=name,
            prompt_token_ids=prompt,
            mm_features=[],
            sampling_params=params,
            generator=None,
            block_ids=([0],),
            num_computed_tokens=0,
            output_token_ids=[],
        )

    def change(self, leave: list[str], enter: list[str], swaps: list[tuple[int, int]]) -> None:
        """What the runner does to its batch before a step."""
        for name in leave:
            self.batch.remove_request(name)
        for name in enter:
            self.batch.add_request(self.states[name])
        self.batch.condense()
        for one, other in swaps:
            if one != other and max(one, other) < self.batch.num_reqs:
                self.batch.swap_states(one, other)

    def logits(self) -> torch.Tensor:
        """One step up to sampling, in the runner's order; the last ids arrive only on the way."""
        last = {}
        for name in self.batch.req_ids:
            output = self.states[name].output_token_ids
            last[name] = output[-1] if output else None
            if output:
                output[-1] = -1
        self.batch.refresh_metadata()
        for name, token in last.items():
            if token is not None:
                self.states[name].output_token_ids[-1] = token
        logits = torch.arange(NUM_ROWS, dtype=torch.float32).repeat(self.batch.num_reqs, 1)
        return self.guard.apply(logits)

    def check(self) -> torch.Tensor:
        """Each row has lost exactly the tokens that its own text refuses."""
        logits = self.logits()
        for row, name in enumerate(self.batch.req_ids):
            text = [*self.states[name].prompt_token_ids, *self.states[name].output_token_ids]
            refused = expected_refusals(self.engine, self.request_options[name], text)
            assert torch.equal(logits[row] == -torch.inf, refused), (name, text)
            kept = ~refused
            assert torch.equal(logits[row][kept], torch.arange(NUM_ROWS).float()[kept])
        return logits

    def sample(self, logits: torch.Tensor, draw: random.Random) -> None:
        """A token for each row, of those that are left; often a part of a character."""
        fragments = set(self.engine.ids("가힣漢あ😀é"))
        for row, name in enumerate(self.batch.req_ids):
            left = torch.nonzero(logits[row] > -torch.inf).flatten().tolist()
            parts = [token for token in left if token in fragments]
            chosen = draw.choice(parts if parts and draw.random() < 0.7 else left)
            self.states[name].output_token_ids.append(chosen)


def machine_of(engine: Engine) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        """Requests come, grow, move, are preempted and come back; after each step all is right.

        What happens between two steps is done in the runner's order: who leaves, who enters, then
        the gaps are closed, then rows are swapped.
        """

        def __init__(self) -> None:
            super().__init__()
            self.world = Batch(engine)
            self.leaving: list[str] = []
            self.entering: list[str] = []
            self.preempted: list[str] = []
            self.swaps: list[tuple[int, int]] = []

        @property
        def running(self) -> list[str]:
            return [name for name in self.world.batch.req_id_to_index if name not in self.leaving]

        @property
        def has_room(self) -> bool:
            return len(self.running) + len(self.entering) < MAX_REQUESTS

        @precondition(lambda self: self.has_room)
        @rule(prompt=st.sampled_from(PROMPTS), request_options=st.sampled_from(REQUEST_OPTIONS))
        def arrive(self, prompt: tuple[str, int], request_options: dict[str, Any] | None) -> None:
            name = f"r{len(self.world.states)}"
            self.world.meet(name, engine.prompt(*prompt), request_options)
            self.entering.append(name)

        @precondition(lambda self: self.running)
        @rule(data=st.data(), preempt=st.booleans())
        def leave(self, data: st.DataObject, preempt: bool) -> None:
            name = data.draw(st.sampled_from(self.running))
            self.leaving.append(name)
            if preempt:
                self.preempted.append(name)

        @precondition(lambda self: self.has_room and set(self.preempted) - set(self.leaving))
        @rule()
        def come_back(self) -> None:
            name = next(name for name in self.preempted if name not in self.leaving)
            self.preempted.remove(name)
            state = self.world.states[name]
            state.output_token_ids = list(state.output_token_ids)  # as async scheduling does
            self.entering.append(name)

        @rule(one=st.integers(0, MAX_REQUESTS - 1), other=st.integers(0, MAX_REQUESTS - 1))
        def swap(self, one: int, other: int) -> None:
            self.swaps.append((one, other))

        @precondition(lambda self: any(self.world.states[r].output_token_ids for r in self.running))
        @rule(data=st.data())
        def lose_tokens(self, data: st.DataObject) -> None:
            names = [r for r in self.running if self.world.states[r].output_token_ids]
            output = self.world.states[data.draw(st.sampled_from(names))].output_token_ids
            del output[data.draw(st.integers(0, len(output) - 1)) :]

        @rule(seed=st.integers(0, 1000), steps=st.integers(1, 4))
        def step(self, seed: int, steps: int) -> None:
            self.world.change(self.leaving, self.entering, self.swaps)
            self.leaving, self.entering, self.swaps = [], [], []
            draw = random.Random(seed)
            for _ in range(steps if self.running else 0):
                self.world.sample(self.world.check(), draw)

    return Machine


@pytest.mark.slow
@pytest.mark.slow
def test_every_row_refuses_what_its_own_text_refuses_wherever_it_moves(engine: Engine) -> None:
    run_state_machine_as_test(machine_of(engine), settings=SETTINGS)


def apply_one(engine: Engine, logits: torch.Tensor, **params: Any) -> torch.Tensor:
    world = Batch(engine)
    world.meet("r", engine.prompt("ok", 0), None, **params)
    world.change([], ["r"], [])
    world.batch.refresh_metadata()
    return world.guard.apply(logits)


def refused_and_left(engine: Engine) -> tuple[int, int]:
    """A token that the default guard refuses between characters, and one that it leaves."""
    refused = expected_refusals(engine, None, engine.prompt("ok", 0))
    return int(torch.nonzero(refused)[0]), engine.ids("k")[0]


def test_a_row_that_has_no_token_left_gets_its_end_token(engine: Engine) -> None:
    refused, _ = refused_and_left(engine)
    logits = torch.full((1, NUM_ROWS), -torch.inf)
    logits[0, refused] = 1.0
    after = apply_one(engine, logits, allowed_token_ids=[refused])
    assert torch.nonzero(after[0] > -torch.inf).flatten().tolist() == [engine.eos]


def test_a_row_that_has_a_token_left_gets_no_other(engine: Engine) -> None:
    refused, left = refused_and_left(engine)
    logits = torch.full((1, NUM_ROWS), -torch.inf)
    logits[0, [refused, left]] = 1.0
    after = apply_one(engine, logits, allowed_token_ids=[refused, left])
    assert torch.nonzero(after[0] > -torch.inf).flatten().tolist() == [left]


def test_requests_changed_steps_and_dead_ends_are_counted(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    refused, left = refused_and_left(engine)
    world = Batch(engine)
    world.meet("dead", engine.prompt("ok", 0), None, allowed_token_ids=[refused])
    world.meet("off", engine.prompt("ok", 0), {"kprune_languages": "off"})
    world.meet("changed", engine.prompt("ok", 0), None)
    world.meet("fine", engine.prompt("ok", 0), REQUEST_OPTIONS[2])
    world.change([], ["dead", "off", "changed", "fine"], [])
    world.batch.refresh_metadata()
    logits = torch.zeros((4, NUM_ROWS))
    logits[0] = -torch.inf
    logits[:3, refused] = 2.0
    logits[3, left] = 2.0
    for _ in range(3):
        world.guard.apply(logits.clone())
        for state in world.states.values():
            state.output_token_ids.append(left)
    # The last step of a request that leaves counts as well: its output has grown.
    world.change(["changed"], [], [])
    world.batch.refresh_metadata()
    assert read_totals(tmp_path) == {
        "en+ko": {"requests": 2, "changed_steps": 6, "dead_ends": 1},
        "ko+hanja": {"requests": 1, "changed_steps": 0, "dead_ends": 0},
    }


def test_a_step_whose_token_is_dropped_counts_nothing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that is read in three parts: vLLM samples after each, and keeps the last token."""
    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    refused, left = refused_and_left(engine)
    world = Batch(engine)
    world.meet("r", engine.prompt("ok", 0), None)
    world.change([], ["r"], [])
    world.batch.refresh_metadata()
    logits = torch.zeros((1, NUM_ROWS))
    logits[0, refused] = 2.0
    for _ in range(3):
        world.guard.apply(logits.clone())
        assert read_totals(tmp_path)["en+ko"]["changed_steps"] == 0
    for committed in (1, 2):
        world.states["r"].output_token_ids.append(left)
        world.guard.apply(logits.clone())
        # The step that waited, and this one, which is known to count.
        assert read_totals(tmp_path)["en+ko"]["changed_steps"] == committed + 1


def test_a_request_that_comes_back_is_not_counted_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    world = Batch(engine)
    world.meet("r", engine.prompt("ok", 0), None)
    world.change([], ["r"], [])
    world.sample(world.check(), random.Random(0))
    world.change(["r"], [], [])
    world.batch.refresh_metadata()
    world.change([], ["r"], [])
    world.check()
    assert read_totals(tmp_path)["en+ko"]["requests"] == 1


def test_an_output_that_was_replaced_is_read_again(engine: Engine) -> None:
    world = Batch(engine)
    world.meet("r", engine.prompt("ok", 0), None)
    world.change([], ["r"], [])
    output = world.states["r"].output_token_ids
    for text, cut in (("k", 0), ("가", 2), ("가", 1), ("k", 0), ("é", 1)):
        output[:] = engine.prompt(text, cut)
        world.check()


def test_a_prompt_of_embeddings_begins_between_characters(engine: Engine) -> None:
    world = Batch(engine)
    world.meet("r", [], None)
    world.states["r"].prompt_token_ids = None
    world.states["r"].prompt_embeds = torch.zeros(3, 8)
    world.change([], ["r"], [])
    world.batch.refresh_metadata()
    after = world.guard.apply(torch.zeros((1, NUM_ROWS)))
    assert torch.equal(after[0] == -torch.inf, expected_refusals(engine, None, []))


def test_policies_are_built_once_and_only_a_few_are_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    original = guard_requests.stored_automaton

    def find(spellings: Any, spec: Any, *args: Any) -> Any:
        built.append(spec.policy.allow)
        return original(spellings, spec, *args)

    monkeypatch.setattr(guard_requests, "stored_automaton", find)
    world = Batch(engine)
    for letter in "αβγδεζηθικλμνξοπρστυα":
        world.meet(letter, engine.prompt("ok", 0), {"kprune_allow": letter})
        world.change([], [letter], [])
        world.batch.refresh_metadata()
        world.guard.apply(torch.zeros((1, NUM_ROWS)))
        world.change([letter], [], [])
        world.batch.refresh_metadata()
    # The default, then each letter; the first one was given up when it came again.
    assert built == ["", *"αβγδεζηθικλμνξοπρστυα"]
    world.meet("υ2", engine.prompt("ok", 0), {"kprune_allow": "υ"})
    world.change([], ["υ2"], [])
    world.batch.refresh_metadata()
    assert len(built) == 22
