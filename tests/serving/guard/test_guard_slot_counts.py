"""What the guard counts on the V2 runner: committed tokens of clients' requests, and nothing else.

In these logits the largest one belongs to a row without a token. So each guarded row is changed,
and the number of changed steps is that of the committed tokens.
"""

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.guard_engines import NUM_ROWS, PROMPTS, REQUEST_OPTIONS, Engine, expected_refusals
from support.slot_runner import SLOTS, Runner, pick

from vllm_kprune.serving.environment import COUNTER_FOLDER
from vllm_kprune.serving.guard.counters import CounterFile, read_totals
from vllm_kprune.serving.guard.tally import Tally

pytestmark = pytest.mark.usefixtures("vllm_ready")

# By the place of the options in REQUEST_OPTIONS; the second asks for no guard.
LABELS = ("en+ko", None, "ko+hanja", "Han+Hiragana")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the guards of a test write their counts."""
    monkeypatch.setenv(COUNTER_FOLDER, str(tmp_path))
    return tmp_path


def counted(folder: Path, counter: str) -> dict[str, int]:
    return {label: n[counter] for label, n in read_totals(folder).items() if n[counter]}


@pytest.mark.parametrize("seed", range(4))
def test_changed_steps_are_the_tokens_that_were_committed(
    engine: Engine, folder: Path, seed: int
) -> None:
    draw = random.Random(seed)
    runner = Runner(engine, drafts=3)
    expected, requests, ended = Counter[str](), Counter[str](), set[int]()
    for _ in range(25):
        for slot in list(runner.texts):
            if slot in ended or draw.random() < 0.1:
                runner.leave(slot)
                ended.discard(slot)
        for slot in set(range(SLOTS)) - set(runner.texts):
            number = draw.randrange(len(LABELS))
            prompt = engine.prompt(*draw.choice(PROMPTS))
            runner.enter(slot, prompt, len(prompt), REQUEST_OPTIONS[number])
            requests[LABELS[number] or ""] += 1
        order = draw.sample(sorted(runner.texts), draw.randint(1, SLOTS))
        drafts = {slot: [_draft(engine, draw) for _ in range(draw.randrange(4))] for slot in order}
        logits, row = runner.step(order, drafts), 0
        for slot in order:
            accepted = draw.randint(0, len(drafts[slot]))
            tokens = [*drafts[slot][:accepted], pick(engine, logits[row + accepted], draw)]
            row += 1 + len(drafts[slot])
            runner.commit(slot, tokens)
            if slot not in ended:
                end = tokens.index(engine.eos) + 1 if engine.eos in tokens else len(tokens)
                label = LABELS[REQUEST_OPTIONS.index(runner.request_options[slot])]
                expected[label or ""] += end
                ended |= {slot} if end < len(tokens) or tokens[end - 1] == engine.eos else set()
    for slot in list(runner.texts):
        runner.leave(slot)
    del expected[""], requests[""]
    assert counted(folder, "changed_steps") == expected
    assert counted(folder, "requests") == requests
    assert counted(folder, "dead_ends") == {}


def _draft(engine: Engine, draw: random.Random) -> int:
    return draw.choice([*engine.ids("가é漢"), engine.eos, draw.randrange(NUM_ROWS)])


def test_a_part_of_a_prompt_counts_nothing(engine: Engine, folder: Path) -> None:
    runner = Runner(engine)
    text = engine.ids("가나다라")
    runner.enter(0, text, len(text), None)
    for end in (3, 6, 9):
        runner.texts[0] = text[:end]
        runner.step([0])
    assert counted(folder, "changed_steps") == {}
    runner.texts[0] = text
    runner.step([0])
    assert counted(folder, "changed_steps") == {"en+ko": 1}


def test_requests_of_vllm_itself_are_guarded_and_not_counted(engine: Engine, folder: Path) -> None:
    runner = Runner(engine, drafts=1)
    text = engine.ids("ok")
    assert runner.enter(0, text, len(text), None, admitted=False)
    runner.check([0], {0: text[:1]})
    runner.commit(0, [text[0], text[1]])
    runner.check([0])
    runner.leave(0)
    assert read_totals(folder) == {}


def test_a_request_that_comes_back_is_the_same_one(engine: Engine, folder: Path) -> None:
    runner = Runner(engine)
    text = engine.ids("ok")
    runner.enter(0, text, len(text), None)
    runner.step([0])
    runner.commit(0, text)
    answered = runner.texts[0]
    runner.leave(0)
    runner.enter(3, answered, len(text), None)
    runner.step([3])
    assert counted(folder, "requests") == {"en+ko": 1}
    assert counted(folder, "changed_steps") == {"en+ko": 2}


def dead_step(runner: Runner, drafts: list[int]) -> None:
    """A step of slot 0 in which a grammar leaves one token, which the guard refuses."""
    foreign = int(torch.nonzero(expected_refusals(runner.engine, None, []))[0])
    runner.guard.apply_staged_writes()
    length, rows = len(runner.texts[0]), 1 + len(drafts)
    context = SimpleNamespace(
        expanded_idx_mapping=torch.zeros(rows, dtype=torch.int64),
        idx_mapping_np=np.array([0]),
        expanded_local_pos=torch.arange(rows),
        input_ids=torch.tensor([runner.texts[0][-1], *drafts]),
        pos=torch.arange(length - 1, length - 1 + rows),
    )
    logits = torch.full((rows, NUM_ROWS), -torch.inf)
    # Of drafts, the last one alone is dead.
    logits[:-1] = torch.arange(NUM_ROWS)
    logits[-1, foreign] = 1.0
    after = runner.guard.apply(logits, context)
    assert torch.nonzero(after[-1] > -torch.inf).flatten().tolist() == [runner.engine.eos]


def test_an_answer_has_one_dead_end(engine: Engine, folder: Path) -> None:
    runner = Runner(engine)
    runner.enter(0, engine.ids("ok"), 2, None, allowed_token_ids=[1], ignore_eos=True)
    for _ in range(5):
        dead_step(runner, [])
        runner.commit(0, [engine.eos])
    assert counted(folder, "dead_ends") == {"en+ko": 1}


def test_a_dead_end_after_a_draft_counts_if_the_draft_was_accepted(
    engine: Engine, folder: Path
) -> None:
    runner = Runner(engine, drafts=2)
    runner.enter(0, engine.ids("ok"), 2, None, allowed_token_ids=[1])
    drafts = engine.ids("no")
    for accepted in (0, 1):
        dead_step(runner, drafts)
        runner.commit(0, drafts[: accepted + 1])
    dead_step(runner, drafts)
    assert counted(folder, "dead_ends") == {}
    runner.commit(0, [*drafts, engine.eos])
    runner.leave(0)
    assert counted(folder, "dead_ends") == {"en+ko": 1}


def test_ranks_count_rows_that_no_other_rank_has(folder: Path) -> None:
    device, sharded = torch.device("cpu"), [False]
    tallies = [Tally(CounterFile(folder), device, rank, lambda: sharded[0]) for rank in (0, 1)]
    assert [tally.counts_rows for tally in tallies] == [True, False]
    sharded[0] = True
    assert [tally.counts_rows for tally in tallies] == [True, True]
    for tally in tallies:
        tally.request(tally.slot("ko"))
    assert counted(folder, "requests") == {"ko": 1}
