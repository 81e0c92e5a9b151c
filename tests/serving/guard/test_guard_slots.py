"""The guard on the V2 runner's interface, with real tensors: slots, rows, drafts, resumption.

The runner itself needs a GPU; its side of the interface is kept here as `gpu_model_runner` does:
tokens are written to the slot's row when they are committed, drafts are in `input_ids` only.
"""

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
    sampling_params,
)

pytestmark = pytest.mark.usefixtures("vllm_ready")

SETTINGS = settings(max_examples=30)
SLOTS, LENGTH = 4, 128


class Runner:
    """The V2 runner's request slots, and a guard that reads them."""

    def __init__(self, engine: Engine, drafts: int = 0) -> None:
        from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcRequestState

        from vllm_kprune.serving.guard.processor import LanguageGuard

        self.engine = engine
        self.texts: dict[int, list[int]] = {}
        self.request_options: dict[int, Any] = {}
        self.states: Any = LogitsProcRequestState(
            device=torch.device("cpu"),
            max_num_reqs=SLOTS,
            vocab_size=NUM_ROWS,
            all_token_ids=SimpleNamespace(gpu=torch.zeros((SLOTS, LENGTH), dtype=torch.int32)),
            prompt_len=SimpleNamespace(np=np.zeros(SLOTS, np.int32)),
            prefill_len=SimpleNamespace(np=np.zeros(SLOTS, np.int32)),
            total_len=SimpleNamespace(gpu=torch.zeros(SLOTS, dtype=torch.int32)),
        )
        config = engine.config
        if drafts:
            config.speculative_config = SimpleNamespace(num_speculative_tokens=drafts)
        self.guard = LanguageGuard(config, self.states)

    def enter(
        self,
        slot: int,
        text: list[int],
        prompt_len: int,
        request_options: Any,
        staged: bool = False,
        **options: Any,
    ) -> bool:
        """A request with `text` so far: its prompt, and what it had when it was preempted."""
        params = sampling_params(extra_args=request_options, **options)
        params.update_from_generation_config({}, self.engine.eos)
        self.texts[slot], self.request_options[slot] = list(text), request_options
        if not staged:
            self.states.all_token_ids.gpu[slot, : len(text)] = torch.tensor(text)
        self.states.prompt_len.np[slot], self.states.prefill_len.np[slot] = prompt_len, len(text)
        self.states.total_len.gpu[slot] = len(text)
        return self.guard.add_request(slot, params)

    def commit(self, slot: int, tokens: list[int]) -> None:
        begin = len(self.texts[slot])
        self.texts[slot] += tokens
        self.states.all_token_ids.gpu[slot, begin : begin + len(tokens)] = torch.tensor(tokens)
        self.states.total_len.gpu[slot] = len(self.texts[slot])

    def step(self, order: list[int], drafts: dict[int, list[int]] | None = None) -> torch.Tensor:
        """Logits after the guard, one row for each slot in `order` and for each of its drafts."""
        self.guard.apply_staged_writes()
        rows = [
            (slot, position, [*self.texts[slot][-1:], *(drafts or {}).get(slot, [])][position])
            for slot in order
            for position in range(1 + len((drafts or {}).get(slot, [])))
        ]
        slots, local, tokens = map(list, zip(*rows, strict=True))
        context = SimpleNamespace(
            expanded_idx_mapping=torch.tensor(slots, dtype=torch.int32),
            idx_mapping=torch.tensor(order, dtype=torch.int32),
            idx_mapping_np=np.array(order, np.int32),
            expanded_local_pos=torch.tensor(local, dtype=torch.int32),
            input_ids=torch.tensor(tokens, dtype=torch.int32),
            pos=torch.tensor(
                [len(self.texts[s]) - 1 + p for s, p in zip(slots, local, strict=True)]
            ),
            seq_lens_upper_bound_np=np.array([len(self.texts[s]) for s in order]),
        )
        logits = torch.arange(NUM_ROWS, dtype=torch.float32).repeat(len(rows), 1)
        return self.guard.apply(logits, context)

    def check(self, order: list[int], drafts: dict[int, list[int]] | None = None) -> torch.Tensor:
        """Every row has lost exactly what its own text, drafts included, refuses."""
        logits, row = self.step(order, drafts), 0
        for slot in order:
            added = (drafts or {}).get(slot, [])
            for end in range(len(added) + 1):
                text = [*self.texts[slot], *added[:end]]
                refused = expected_refusals(self.engine, self.request_options[slot], text)
                assert torch.equal(logits[row] == -torch.inf, refused), (slot, text)
                row += 1
        return logits


def pick(engine: Engine, row: torch.Tensor, draw: random.Random) -> int:
    """A token that is left, often a part of a character."""
    fragments = set(engine.ids("가힣漢あ😀é"))
    left = torch.nonzero(row > -torch.inf).flatten().tolist()
    parts = [token for token in left if token in fragments]
    return draw.choice(parts if parts and draw.random() < 0.7 else left)


requests = st.tuples(st.sampled_from(PROMPTS), st.sampled_from(REQUEST_OPTIONS))


def enter(runner: Runner, slot: int, request: tuple[tuple[str, int], Any]) -> None:
    (text, cut), request_options = request
    ids = runner.engine.prompt(text, cut)
    runner.enter(slot, ids, len(ids), request_options)


@SETTINGS
@given(wanted=st.lists(requests, min_size=1, max_size=12), seed=st.integers(0, 1 << 20))
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
