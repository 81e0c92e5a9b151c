"""Reasoning and answer, each with its own policy: judged by brute force and by the decoder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.guard_oracle import BruteForce, PhaseOracle, foreign, policy_of
from support.tiny_tokenizers import TINY
from tokenizers import AddedToken, Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard import classes
from vllm_kprune.guard.automaton import build_automaton
from vllm_kprune.guard.phases import ReasoningTokens, build_phases
from vllm_kprune.guard.tokens import CONTROL, spell_tokens
from vllm_kprune.tokenizer.bpe import parse_tokenizer

KO = policy_of(scripts="Hangul", allow="é")
RU = policy_of(scripts="Cyrillic", allow="😀")
KO_JSON, RU_JSON = replace(KO, escapes="json"), replace(RU, escapes="json")
GUARDS = {
    "both": (KO, RU),
    "answer": (KO, None),
    "reasoning": (None, RU),
    "json": (KO_JSON, RU_JSON),
    "json answer": (KO_JSON, RU),
}
# Tokens with backslashes and a u in every order.
BACKSLASHES = (
    "\\",
    "\\\\",
    "u",
    "\\u",
    "\\\\u",
    "u4e01",
    "\\n",
    "é\\",
    "u\\",
    "\\ u\\\\\\",
    "1\\\\",
)
force_of = cache(BruteForce)


class Case:
    """A tokenizer whose reasoning tokens are special (decoders skip them) or not."""

    def __init__(self, kind: str, is_special: bool, guards: str, has_start: bool = True) -> None:
        self.tokenizer = Tokenizer.from_str(TINY[kind]().to_str())
        added = [AddedToken(t, normalized=False, special=is_special) for t in ("<t>", "</t>")]
        self.tokenizer.add_tokens(added)
        self.tokenizer.add_tokens([*BACKSLASHES])
        self.spellings = spell_tokens(parse_tokenizer(json.loads(self.tokenizer.to_str())))
        start, end = (self.tokenizer.token_to_id(token.content) for token in added)
        self.tokens = ReasoningTokens(start if has_start else None, end)
        self.start, self.end = start, end
        self.answer, self.reasoning = GUARDS[guards]
        self.num_rows = self.spellings.num_tokens + 3
        self.automaton = build_phases(
            self.spellings, self.answer, self.reasoning, self.tokens, self.num_rows
        )
        policies = (self.answer, self.reasoning)
        forces = [policy and force_of(replace(policy, escapes="auto")) for policy in policies]
        phases = {"answer": self.answer, "before": self.answer, "reasoning": self.reasoning}
        json_phases = {name for name, p in phases.items() if p and p.escapes == "json"}
        self.oracle = PhaseOracle(self.spellings, *forces, *vars(self.tokens).values(), json_phases)
        self.backslashes = [self.tokenizer.token_to_id(text) for text in BACKSLASHES]
        self.bytes = {
            self.spellings.bytes_of(i): i
            for i in np.flatnonzero(np.diff(self.spellings.starts) == 1)
            if kind == "byte_level" or self.spellings.flags[i] & 4
        }

    def prompts(self) -> st.SearchStrategy[list[int]]:
        """Texts that a guard would not have written, with reasoning tokens anywhere."""
        cut = [self.bytes[bytes([byte])] for text in "한é中д😀\n" for byte in text.encode()]
        words = self.tokenizer.encode("나는 中 the мир \n", add_special_tokens=False).ids
        marks = [self.start, self.end, self.tokenizer.token_to_id("<eos>")]
        return st.lists(st.sampled_from([*cut, *words, *marks * 4, *self.backslashes]), max_size=8)

    def following(self, state: int, random: np.random.Generator) -> int:
        """A random allowed token, with rare ones often."""
        allowed = np.flatnonzero(~self.automaton.refused(state).numpy())
        marks = [i for i in (*[self.start, self.end, 1] * 4, *self.backslashes) if i in allowed]
        if marks and random.random() < 0.25:
            return int(random.choice(marks))
        classes = self.automaton.token_class.numpy()[allowed]
        return int(random.choice(allowed[classes == random.choice(np.unique(classes))]))


SETTINGS = settings(max_examples=8)  # of each of many cases
case_of: Callable[..., Case] = cache(Case)
CASES = [
    (kind, is_special, guards)
    for kind in sorted(TINY)
    for is_special in (True, False)
    for guards in GUARDS
]
NO_START = [(kind, True, g, False) for kind in sorted(TINY) for g in ("both", "json")]


@pytest.fixture(params=[*CASES, *NO_START], ids=lambda p: "-".join(map(str, p)))
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(*request.param)


@SETTINGS
@given(data=st.data(), seed=st.integers(0, 1 << 30))
@pytest.mark.slow
def test_in_every_phase_exactly_what_its_policy_allows_is_allowed(
    case: Case, data: st.DataObject, seed: int
) -> None:
    prompt, output = data.draw(case.prompts()), list[int]()
    random, automaton = np.random.default_rng(seed), case.automaton
    state = automaton.state_after(prompt)
    for _ in range(12):
        refused = automaton.refused(state).numpy()
        expected = case.oracle.allowed(prompt, output)
        assert np.array_equal(~refused[: len(expected)], expected), (prompt, output)
        assert refused[len(expected) :].all()
        assert (state >= automaton.first_reasoning_state) == (
            case.oracle.phase(prompt, output) == "reasoning"
        )
        # A request that was preempted comes back with what it has written.
        assert state == automaton.state_after([*prompt, *output], len(prompt))
        token_id = case.following(state, random)
        after = automaton.next_states(torch.tensor([state]), torch.tensor([token_id]))
        state = automaton.advance(state, token_id)
        assert after.tolist() == [state]
        output.append(token_id)


@SETTINGS
@given(data=st.data(), seed=st.integers(0, 1 << 30), skip=st.booleans())
def test_a_decoded_answer_has_no_foreign_character_whatever_the_reasoning_left(
    case: Case, data: st.DataObject, seed: int, skip: bool
) -> None:
    """Free reasoning may leave half a character, or a run of byte tokens that is not UTF-8."""
    random, automaton = np.random.default_rng(seed), case.automaton
    prompt = [*data.draw(case.prompts()), case.start]
    thought, answer = list[int](), list[int]()
    state = automaton.state_after(prompt)
    while len(thought) < 8 or automaton.refused(state)[case.end]:
        thought.append(token_id := case.following(state, random))
        state = automaton.advance(state, token_id)
        if token_id == case.end:
            break
    else:
        thought.append(case.end)
        state = automaton.advance(state, case.end)
    for _ in range(8):
        answer.append(token_id := case.following(state, random))
        state = automaton.advance(state, token_id)

    def decoded(ids: Sequence[int]) -> str:
        return case.tokenizer.decode(ids, skip_special_tokens=skip)

    alone = decoded(answer)
    if case.answer:
        # Control tokens may be shown; a character may be cut off at the end.
        shown = alone
        for token_id in np.flatnonzero(case.spellings.flags & CONTROL):
            shown = shown.replace(case.tokenizer.id_to_token(int(token_id)), "")
        shown = shown.replace("<t>", "").replace("</t>", "")
        assert foreign(shown.rstrip("\ufffd"), case.answer) == set()
        assert decoded([*prompt, *thought, *answer]).endswith(alone)


def test_no_state_of_any_phase_is_a_dead_end(case: Case) -> None:
    following = case.automaton.class_next.numpy()
    reached = {0}
    for token_ids in ([], [case.start], [case.end]):
        waiting = [case.automaton.state_after(token_ids)]
        while waiting:
            if (state := waiting.pop()) not in reached:
                waiting += [int(after) for after in np.unique(following[state]) if after >= 0]
            reached.add(state)
    assert (following[sorted(reached)] >= 0).any(axis=1).all()
    # Each phase is left at last, unless there is no way out of it by design.
    assert len(reached) > 3


def test_a_second_start_token_does_not_free_an_answer() -> None:
    for kind in TINY:
        case = case_of(kind, True, "answer")
        (foreign_id,) = case.tokenizer.encode("中", add_special_tokens=False).ids
        automaton = case.automaton
        for output in ([case.start, case.end], [case.end], case.bytes[b"1"] and [case.bytes[b"1"]]):
            state = automaton.state_after([])
            for token_id in [*output, case.start]:
                state = automaton.advance(state, token_id)
            assert automaton.refused(state)[foreign_id], output
        assert not automaton.refused(automaton.state_after([case.start]))[foreign_id]
        assert not automaton.refused(automaton.state_after([case.end, case.start]))[foreign_id]
        assert automaton.refused(automaton.state_after([case.start, case.end]))[foreign_id]


def test_an_end_token_that_comes_inside_a_character_begins_the_answer() -> None:
    """A thinking budget forces it."""
    for kind in TINY:
        case = case_of(kind, False, "both")
        state = case.automaton.state_after([case.start, case.bytes[b"\xd0"]])
        assert case.automaton.refused(state)[case.end]
        assert case.automaton.advance(state, case.end) == 0


def test_labels_name_what_is_guarded() -> None:
    labels = {
        guards: (built.label, built.reasoning_label)
        for guards in GUARDS
        for built in [case_of("byte_level", True, guards).automaton]
    }
    assert labels == {
        "both": ("Hangul", "Cyrillic"),
        "answer": ("Hangul", None),
        "reasoning": ("Cyrillic", "Cyrillic"),
        "json": ("Hangul", "Cyrillic"),
        "json answer": ("Hangul", "Cyrillic"),
    }
    plain = build_automaton(case_of("byte_level", True, "both").spellings, KO)
    assert (plain.label, plain.reasoning_label, plain.first_reasoning_state) == (
        "Hangul",
        None,
        None,
    )


@pytest.mark.parametrize("tokens", [(5, 5), (None, 1 << 20), (1 << 20, 5), (-1, 5), (5, -1)])
def test_tokens_that_the_vocabulary_lacks_are_an_error(tokens: tuple[int | None, int]) -> None:
    spellings = case_of("byte_level", True, "both").spellings
    with pytest.raises(KPruneError, match="expected two different ids of the vocabulary"):
        build_phases(spellings, KO, None, ReasoningTokens(*tokens))


def test_no_policy_at_all_is_an_error() -> None:
    case = case_of("byte_level", True, "both")
    with pytest.raises(KPruneError, match="got no policy"):
        build_phases(case.spellings, None, None, case.tokens)


def test_more_states_than_the_tables_can_number_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of("byte_level", True, "both")
    monkeypatch.setattr(classes, "MOST_NUMBERS", case.automaton.num_states - 1)
    with pytest.raises(KPruneError, match="name fewer languages or scripts"):
        build_phases(case.spellings, KO, RU, case.tokens, case.num_rows)
