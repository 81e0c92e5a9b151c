"""Whatever is sampled from the allowed tokens decodes to allowed characters, and to nothing else.

The oracle knows nothing of the automaton: `tokenizers` decodes, `regex` judges each character.
"""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.guard_oracle import SETTINGS, Vocabulary, Walks, foreign, policy_of
from tokenizers.decoders import DecodeStream

from vllm_kprune.guard.policy import SCRIPTS
from vllm_kprune.guard.tokens import CONTROL, SPECIAL
from vllm_kprune.profile import LANGUAGES

pytestmark = pytest.mark.slow

ENKO = policy_of(languages="en,ko")

_NAMES = {"languages": sorted(LANGUAGES), "scripts": SCRIPTS}
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "hanja": st.sampled_from(["none", "ksx1001", "all"]),
        "allow": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        "digits": st.booleans(),
        **{
            key: st.lists(st.sampled_from(names), min_size=1, max_size=4)
            for key, names in _NAMES.items()
        },
    },
).filter(lambda options: "languages" in options or "scripts" in options)


def test_a_million_random_tokens_hold_no_foreign_character(vocabulary: Vocabulary) -> None:
    walks = Walks(vocabulary.automaton(ENKO), count=20_000, seed=7)
    for _ in range(50):
        walks.step()
    inside = np.count_nonzero(walks.states)
    walks.finish()
    text = "".join(vocabulary.texts(walks.ids()))
    assert foreign(text, ENKO) == set()
    assert "\ufffd" not in text
    # The walks are worth something: they end inside characters, and spell rare ones.
    assert inside > 1_000
    assert len(set(text)) > 10_000


@SETTINGS
@given(options=OPTIONS, seed=st.integers(0, 1 << 30))
def test_random_policies_hold_no_foreign_character(
    vocabulary: Vocabulary, options: Mapping[str, object], seed: int
) -> None:
    policy = policy_of(**options)
    walks = Walks(vocabulary.automaton.__wrapped__(policy), count=200, seed=seed)
    for _ in range(20):
        walks.step()
    walks.finish()
    # Control tokens that decoders show are whatever a policy says: parsers take them out.
    flags = vocabulary.spellings.flags
    shown = set(np.flatnonzero((flags & CONTROL != 0) & (flags & SPECIAL == 0)).tolist())
    ids = [[token_id for token_id in line if token_id not in shown] for line in walks.ids()]
    assert foreign("".join(vocabulary.texts(ids)), policy) == set()


@SETTINGS
@given(seed=st.integers(0, 1 << 30), length=st.integers(1, 30))
def test_streamed_text_never_shows_half_a_character(
    vocabulary: Vocabulary, seed: int, length: int
) -> None:
    """As vLLM streams, at whatever token the answer is cut off."""
    walks = Walks(vocabulary.automaton(ENKO), count=20, seed=seed)
    for _ in range(length):
        walks.step()
    for ids in walks.ids():
        stream = DecodeStream(skip_special_tokens=True)
        shown = "".join(stream.step(vocabulary.tokenizer, i) or "" for i in ids)
        assert foreign(shown, ENKO) == set()


@SETTINGS
@given(seed=st.integers(0, 1 << 30), length=st.integers(1, 30))
def test_an_answer_that_is_cut_off_is_broken_at_its_end_only(
    vocabulary: Vocabulary, seed: int, length: int
) -> None:
    walks = Walks(vocabulary.automaton(ENKO), count=50, seed=seed)
    for _ in range(length):
        walks.step()
    for text, state in zip(vocabulary.texts(walks.ids()), walks.states, strict=True):
        assert foreign(text.rstrip("\ufffd") if state else text, ENKO) == set()


def test_special_tokens_shown_as_text_change_nothing(vocabulary: Vocabulary) -> None:
    walks = Walks(vocabulary.automaton(ENKO), count=500, seed=3)
    for _ in range(30):
        walks.step()
    walks.finish()
    texts = vocabulary.texts(walks.ids(), skip_special_tokens=False)
    assert foreign("".join(texts), ENKO) == set()


@SETTINGS
@given(seed=st.integers(0, 1 << 30))
def test_one_step_many_steps_and_the_whole_text_lead_to_the_same_state(
    vocabulary: Vocabulary, seed: int
) -> None:
    automaton = vocabulary.automaton(ENKO)
    walks = Walks(automaton, count=20, seed=seed)
    states = [0] * 20
    for _ in range(10):
        before = torch.from_numpy(walks.states)
        walks.step()
        chosen = walks.steps[-1]
        states = [automaton.advance(s, int(i)) for s, i in zip(states, chosen, strict=True)]
        together = automaton.next_states(before, torch.from_numpy(chosen))
        assert states == walks.states.tolist() == together.tolist()
        assert states == [automaton.state_after(ids) for ids in walks.ids()]
