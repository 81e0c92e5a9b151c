"""Refused tokens get -inf, nothing else changes, and changed rows are reported."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.guard_oracle import SETTINGS, Vocabulary, policy_of

from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.guard.mask import FEW, TokenMask

ENKO = policy_of(languages="en,ko")
HANGUL = policy_of(scripts="Hangul")
EVERYTHING_BUT_THAI = policy_of(languages="en,ko,ja,ru,ar,hi,he,el", hanja="all")


@pytest.fixture(scope="module")
def automatons(load_vocabulary: Callable[[str], Vocabulary]) -> list[Automaton]:
    """State 0 refuses many, nearly all, and few tokens."""
    llama = load_vocabulary("llama3_1")
    built = [llama.automaton(policy) for policy in (ENKO, HANGUL, EVERYTHING_BUT_THAI)]
    shares = [automaton.refused(0).float().mean().item() for automaton in built]
    assert FEW < shares[0] < 1 - FEW
    assert shares[1] > 0.9
    assert shares[2] < FEW
    return built


def expected(logits: torch.Tensor, groups: dict[tuple[Automaton, int], list[int]]) -> torch.Tensor:
    wanted = logits.clone()
    for (automaton, state), rows in groups.items():
        for row in rows:
            wanted[row][automaton.refused(state)] = -torch.inf
    return wanted


@SETTINGS
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
@pytest.mark.slow
def test_rows_of_any_states_get_their_own_mask(
    automatons: list[Automaton], data: st.DataObject, dtype: torch.dtype
) -> None:
    choice = st.none() | st.tuples(st.sampled_from(automatons), st.integers(0, 20))
    rows = data.draw(st.lists(choice, min_size=1, max_size=6))
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    logits = torch.randn(len(rows), automatons[0].num_rows, generator=seed).to(dtype)
    groups: dict[tuple[Automaton, int], list[int]] = {}
    for n, key in reversed([*enumerate(rows)]):  # rows need not be in order
        if key is not None:
            groups.setdefault(key, []).append(n)
    wanted = expected(logits, groups)
    changed = torch.zeros(len(rows), dtype=torch.bool)

    mask = TokenMask()
    told = mask.apply_(logits.clone(), groups, changed)
    assert torch.equal(changed, logits.amax(dim=-1) > wanted.amax(dim=-1))
    assert torch.equal(told, wanted)
    assert torch.equal(mask.apply_(logits, groups), wanted)


def test_rows_whose_most_likely_token_was_refused_are_told(automatons: list[Automaton]) -> None:
    for automaton in automatons:
        for state in (0, 1, 5):
            refused = automaton.refused(state)
            bad, good = int(refused.nonzero()[3]), int((~refused).nonzero()[0])
            logits = torch.zeros(4, automaton.num_rows)
            logits[0, bad] = 1.0
            logits[1, good] = 1.0
            logits[2, [bad, good]] = 1.0  # a tie is no change
            logits[3, bad], logits[3, good] = 3.0, 2.0
            changed = torch.tensor([False, True, True, False])
            TokenMask().apply_(logits, {(automaton, state): [0, 1, 2, 3]}, changed)
            assert changed.tolist() == [True, False, False, True]


def test_rows_of_a_large_batch_are_told_each(automatons: list[Automaton]) -> None:
    """More rows than a CPU's cache holds are gone through in parts."""
    logits = torch.randn(40, automatons[0].num_rows, generator=torch.Generator().manual_seed(1))
    logits[::3] -= 5 * automatons[0].refused(0).float()
    changed = torch.zeros(40, dtype=torch.bool)
    before = logits.argmax(dim=-1)
    TokenMask().apply_(logits, {(automatons[0], 0): range(40)}, changed)
    assert torch.equal(changed, automatons[0].refused(0)[before])
    assert not changed[::3].any()
    assert changed.any()


def test_infinite_logits_stay_what_they_are(automatons: list[Automaton]) -> None:
    for automaton in automatons:
        for state in (0, 1):
            refused = automaton.refused(state)
            for value in (torch.inf, -torch.inf):
                logits = torch.full((1, automaton.num_rows), value)
                TokenMask().apply_(logits, {(automaton, state): [0]})
                assert torch.equal(logits[0] == -torch.inf, refused | (value < 0))
                assert not logits.isnan().any()


def test_logits_are_changed_in_place_even_in_a_slice(automatons: list[Automaton]) -> None:
    """vLLM may hand out a part of a wider tensor."""
    wide = torch.zeros(3, automatons[0].num_rows + 64)
    logits = wide[:, : automatons[0].num_rows]
    for automaton in automatons:
        for state in (0, 1):
            wide.zero_()
            assert TokenMask().apply_(logits, {(automaton, state): [0, 2]}) is logits
            assert torch.equal(logits[0] == -torch.inf, automaton.refused(state))
            assert not wide[1].any()
            assert not wide[:, automaton.num_rows :].any()


def test_what_a_forgotten_automaton_needed_is_freed(automatons: list[Automaton]) -> None:
    mask = TokenMask()
    logits = torch.zeros(1, automatons[0].num_rows)
    for automaton in automatons:
        mask.apply_(logits, {(automaton, 0): [0], (automaton, 1): [0]})
    mask.forget(automatons[0])
    assert {key[0].policy for key in mask._refusals} == {HANGUL, EVERYTHING_BUT_THAI}
