r"""With `escapes: json`, no parser of JSON reads a character that the policy does not allow."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from support.guard_oracle import Vocabulary, foreign, policy_of

from vllm_kprune.guard.automaton import Automaton
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.guard.tokens import CONTROL, SPECIAL

KO = policy_of(languages="ko")
KO_JSON = replace(KO, escapes="json")
WRITES_U = re.compile(r"(?<!\\)(\\\\)*\\u")


def parsed(vocabulary: Vocabulary, policy: GuardPolicy, seed: int) -> list[str]:
    """What a parser reads in random short answers, full of backslashes, that are JSON strings."""
    automaton, random = vocabulary.automaton(policy), np.random.default_rng(seed)
    texts = vocabulary.texts([[i] for i in range(vocabulary.spellings.num_tokens)])
    likely = [i for i, text in enumerate(texts) if re.fullmatch(r"[\\uU0-9a-fn/]{1,4}", text)]
    slashes = [i for i in likely if "\\" in texts[i]]
    special = np.flatnonzero(vocabulary.spellings.flags & SPECIAL)[:2].tolist()
    ids = np.array([*likely, *slashes * (len(likely) // len(slashes)), *special * 40])
    ids = ids[ids < vocabulary.num_rows]
    classes, following = automaton.token_class.numpy()[ids], automaton.class_next.numpy()
    answers = []
    for _ in range(2_500):
        state, answer = 0, list[int]()
        for _ in range(random.integers(1, 8)):
            allowed = np.flatnonzero(following[state, classes] >= 0)
            answer.append(int(ids[(chosen := random.choice(allowed))]))
            state = following[state, classes[chosen]]
        answers.append(answer)
    found = []
    for text in vocabulary.texts(answers):
        try:
            found.append(json.loads(f'"{text}"', strict=False))
        except ValueError:
            continue
    return found


@pytest.mark.slow
def test_no_allowed_answer_is_parsed_to_a_foreign_character(vocabulary: Vocabulary) -> None:
    texts = parsed(vocabulary, KO_JSON, seed=5)
    assert foreign("".join(texts), KO) == set()
    # The test is worth something: many were JSON, and without the state they hold others.
    assert len(texts) > 300
    assert "\\" in "".join(texts)
    assert foreign("".join(parsed(vocabulary, KO, seed=5)), KO) != set()


def rows(automaton: Automaton, state: int) -> np.ndarray:
    return ~automaton.refused(state).numpy()


@pytest.mark.slow
def test_exactly_what_writes_an_escaped_u_is_refused(vocabulary: Vocabulary) -> None:
    plain, guarded = vocabulary.automaton(KO), vocabulary.automaton(KO_JSON)
    escaped = guarded.num_states - 1
    assert guarded.num_states == plain.num_states + 1
    spellings = vocabulary.spellings
    width = min(vocabulary.num_rows, spellings.num_tokens)
    texts = [spellings.bytes_of(i).decode(errors="replace") for i in range(width)]
    control = spellings.flags[:width] & CONTROL != 0
    for state, before in ((0, ""), (escaped, "\\")):
        writes = np.array([WRITES_U.search(before + text) is not None for text in texts])
        expected = rows(plain, 0)[:width] & ~(writes & ~control)
        assert np.array_equal(rows(guarded, state)[:width], expected)
    for state in range(1, plain.num_states):
        lost = np.flatnonzero(rows(plain, state) & ~rows(guarded, state))
        assert all(WRITES_U.search(texts[i]) for i in lost)
        assert not (rows(guarded, state) & ~rows(plain, state)).any()


@pytest.mark.parametrize(
    ("text", "is_escaped"),
    [
        ("\\", True),
        ("a\\\\", False),
        ("a\\\\\\", True),
        ("\\n", False),
        ("한\\", True),
        ("", False),
    ],
)
def test_a_text_that_ends_in_a_backslash_is_continued(
    vocabulary: Vocabulary, text: str, is_escaped: bool
) -> None:
    automaton = vocabulary.automaton(KO_JSON)
    ids = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
    special = int(np.flatnonzero(vocabulary.spellings.flags & SPECIAL)[0])
    u = vocabulary.tokenizer.encode("u", add_special_tokens=False).ids[-1]
    for token_ids in (ids, [*ids, special]):
        state = automaton.state_after(token_ids)
        assert state == (automaton.num_states - 1 if is_escaped else 0)
        assert bool(automaton.refused(state)[u]) == is_escaped


def test_other_escapes_and_an_escaped_backslash_before_a_u_are_allowed(
    vocabulary: Vocabulary,
) -> None:
    automaton, text = vocabulary.automaton(KO_JSON), r'"C:\\users\\u4e01 \"한\" \n\t\/"'
    state = 0
    for token_id in vocabulary.tokenizer.encode(text, add_special_tokens=False).ids:
        assert not automaton.refused(state)[token_id]
        state = automaton.advance(state, token_id)
    assert state == 0


def test_auto_is_off_until_a_request_says_more(vocabulary: Vocabulary) -> None:
    sizes = {
        escapes: vocabulary.automaton(replace(KO, escapes=escapes)).num_states
        for escapes in ("auto", "off", "json")
    }
    assert sizes["auto"] == sizes["off"] == sizes["json"] - 1
