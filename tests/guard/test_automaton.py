"""Only what must be refused is, and what is allowed is UTF-8; prompts, padding, dead ends."""

import numpy as np
import pytest
import torch
from support.guard_oracle import BruteForce, Vocabulary, policy_of
from support.tiny_tokenizers import TINY, data_of

from vllm_kprune.errors import KPruneError
from vllm_kprune.guard.automaton import REFUSED, Automaton, build_automaton
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.guard.tokens import BYTE, CONTROL, PRESENT, SPECIAL, TokenSpellings, spell_tokens
from vllm_kprune.tokenizer.bpe import parse_tokenizer
from vllm_kprune.tokenizer.byte_tokens import byte_alphabet

ENKO = policy_of(languages="en,ko")
HANJA = policy_of(languages="ko", hanja="ksx1001", allow="\U00020000д")
KO = policy_of(languages="ko")


@pytest.fixture(scope="module", params=[ENKO, HANJA], ids=["enko", "hanja"])
def brute(request: pytest.FixtureRequest) -> tuple[GuardPolicy, BruteForce]:
    """A policy and everything that it allows, by brute force."""
    return request.param, BruteForce(request.param)


def state_of(automaton: Automaton, pending: bytes) -> int:
    state = 0
    for byte in pending:
        state = int(automaton._reader.table[state, byte])
    return state


def judged(spellings: TokenSpellings, force: BruteForce, pending: bytes, token_id: int) -> bool:
    flags = spellings.flags_of(token_id)
    if flags & CONTROL or not flags & PRESENT:
        return bool(flags & CONTROL) and not pending
    if pending and spellings.kind == "byte_fallback" and not flags & BYTE:
        return False
    token = spellings.bytes_of(token_id)
    return force.allows(pending, token) and bool(token or not pending)


@pytest.mark.slow
def test_between_characters_exactly_what_can_become_allowed_text_is_allowed(
    vocabulary: Vocabulary, brute: tuple[GuardPolicy, BruteForce]
) -> None:
    """Both ways: nothing leaks, and nothing is refused that need not be."""
    policy, force = brute
    refused = vocabulary.automaton(policy).refused(0).numpy()
    wrong = [
        i
        for i in range(vocabulary.num_rows)
        if refused[i] == judged(vocabulary.spellings, force, b"", i)
    ]
    assert wrong == []


def test_inside_characters_exactly_what_continues_them_is_allowed(
    vocabulary: Vocabulary, brute: tuple[GuardPolicy, BruteForce]
) -> None:
    policy, force = brute
    automaton, spellings = vocabulary.automaton(policy), vocabulary.spellings
    parts = np.flatnonzero(spellings.head_lengths | spellings.tail_lengths)
    others = np.random.default_rng(0).integers(0, vocabulary.num_rows, 300)
    ids = [i for i in np.unique([*parts, *others]) if i < vocabulary.num_rows]
    # One beginning for each state, and a few more.
    chosen = {state_of(automaton, p): p for p in sorted(force.beginnings) if p}
    more = sorted(force.beginnings - {b""})[::211]
    for pending in [*chosen.values()][:: len(chosen) // 16] + more[:8]:
        refused = automaton.refused(state_of(automaton, pending)).numpy()
        wrong = [i for i in ids if refused[i] == judged(spellings, force, pending, int(i))]
        assert wrong == [], pending


def test_every_state_is_reached_by_some_beginning_of_a_character(
    brute: tuple[GuardPolicy, BruteForce], vocabulary: Vocabulary
) -> None:
    automaton = vocabulary.automaton(brute[0])
    reached = {state_of(automaton, pending) for pending in brute[1].beginnings}
    assert REFUSED not in reached
    assert reached | {automaton.broken} == set(range(automaton.num_states))


def test_states_with_the_same_completions_are_one(vocabulary: Vocabulary) -> None:
    table = vocabulary.automaton(HANJA)._reader.table[:-1]
    assert len(np.unique(table, axis=0)) == len(table)


def test_rows_without_a_token_are_refused_in_every_state(vocabulary: Vocabulary) -> None:
    num_rows = vocabulary.spellings.num_tokens + 100
    automaton = build_automaton(vocabulary.spellings, ENKO, num_rows)
    assert automaton.token_class.shape == (num_rows,)
    assert all(automaton.refused(state)[-100:].all() for state in range(automaton.num_states))
    assert automaton.advance(1, num_rows - 1) == automaton.advance(1, -1) == 0


def test_tokens_past_the_embedding_are_left_out(vocabulary: Vocabulary) -> None:
    automaton = build_automaton(vocabulary.spellings, ENKO, 1_000)
    assert automaton.refused(0).shape == (1_000,)
    assert automaton.advance(0, 1_000) == 0


def test_special_and_stop_tokens_are_allowed_between_characters_only(
    vocabulary: Vocabulary,
) -> None:
    foreign_id = vocabulary.tokenizer.encode("中", add_special_tokens=False).ids[0]
    assert vocabulary.automaton(ENKO).refused(0)[foreign_id]
    automaton = build_automaton(
        vocabulary.spellings, ENKO, vocabulary.num_rows, control_ids=[foreign_id, -1, 1 << 30]
    )
    special = np.flatnonzero(vocabulary.spellings.flags & SPECIAL)
    ids = [*special[special < vocabulary.num_rows], foreign_id]
    assert not automaton.refused(0)[ids].any()
    inside = set(range(1, automaton.num_states)) - {automaton.broken}
    assert all(automaton.refused(state)[ids].all() for state in inside)


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
    ids: list[int] = vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def byte_ids(vocabulary: Vocabulary, text: bytes) -> list[int]:
    """The ids of single bytes."""
    spellings = vocabulary.spellings
    ids = {
        spellings.bytes_of(i): i
        for i in np.flatnonzero(np.diff(spellings.starts) == 1)
        if spellings.kind == "byte_level" or spellings.flags[i] & BYTE
    }
    return [int(ids[bytes([byte])]) for byte in text]


def test_prompts_of_whole_characters_end_between_characters(vocabulary: Vocabulary) -> None:
    automaton = vocabulary.automaton(KO)
    assert automaton.state_after([]) == 0
    for text in ("한국어", "中文", "дом 日本", "a", "\n", "👩‍👩‍👧", "ꀀ"):
        assert automaton.state_after(encode(vocabulary, text)) == 0
        assert automaton.state_after(byte_ids(vocabulary, text.encode())) == 0


def test_prompts_that_end_inside_a_character_wait_for_the_rest_of_it(
    vocabulary: Vocabulary,
) -> None:
    automaton = vocabulary.automaton(KO)
    words = encode(vocabulary, "나는 中 ")
    for character in ("한", "각", "😀", "·"):
        whole = character.encode()
        for cut in range(1, len(whole)):
            begun = words + byte_ids(vocabulary, whole[:cut])
            state = automaton.state_after(begun)
            assert state == state_of(automaton, whole[:cut]) > 0
            for token_id in byte_ids(vocabulary, whole[cut:]):
                state = automaton.advance(state, token_id)
            assert state == 0


@pytest.mark.parametrize(
    "broken", [b"\xd7", b"\xe5", b"\xe4\xb8", b"\xff", b"a\xea\xb0\xe5", b"\xe0\x80"]
)
def test_prompts_that_end_in_broken_bytes_keep_the_answer_whole(
    vocabulary: Vocabulary, broken: bytes
) -> None:
    """Whatever follows, and is allowed, shows no U+FFFD of its own."""
    automaton = vocabulary.automaton(KO)
    prompt = encode(vocabulary, "나는") + byte_ids(vocabulary, broken)
    state = automaton.state_after(prompt)
    assert state == automaton.broken
    before = vocabulary.texts([prompt])[0]
    for answer in (encode(vocabulary, "한국어"), byte_ids(vocabulary, "한".encode()) * 2):
        allowed = not automaton.refused(state)[answer[0]]
        text = vocabulary.texts([prompt + answer])[0]
        assert allowed == (text.count("\ufffd") == before.count("\ufffd"))
    for token_id in encode(vocabulary, "한국어"):
        state = automaton.advance(state, token_id)
    assert state == 0


def test_a_special_token_inside_a_character_breaks_it(vocabulary: Vocabulary) -> None:
    automaton = vocabulary.automaton(KO)
    special = int(np.flatnonzero(vocabulary.spellings.flags & SPECIAL)[0])
    first, *rest = byte_ids(vocabulary, "한".encode())
    assert automaton.state_after([first, special]) == automaton.broken
    assert automaton.state_after([first, special, *rest]) == automaton.broken
    assert automaton.state_after([special, first]) == state_of(automaton, b"\xed")
    assert automaton.state_after([first, *rest, special]) == 0
    assert automaton.state_after([first, *rest, special, first]) == state_of(automaton, b"\xed")


@pytest.mark.slow
def test_a_token_that_was_refused_and_came_all_the_same_leads_where_it_would_alone(
    vocabulary: Vocabulary,
) -> None:
    automaton = vocabulary.automaton(KO)
    inside = state_of(automaton, b"\xed")
    spellings = vocabulary.spellings
    for state in (0, inside, automaton.broken):
        row = automaton.class_next[state].numpy()[automaton.token_class.numpy()]
        for token_id in np.flatnonzero(row == REFUSED)[::97]:
            after = automaton.advance(state, int(token_id))
            alone = automaton.state_after([int(token_id)])
            if spellings.flags_of(int(token_id)) & (BYTE | SPECIAL) and automaton.broken:
                alone = automaton.broken  # it is in the same run as the broken character
            assert after == alone, (state, token_id)
            states = torch.tensor([state, state])
            many = automaton.next_states(states, torch.tensor([token_id, token_id]))
            assert many.tolist() == [after, after]


def test_the_example_of_the_module_is_right() -> None:
    """The table at the top of `guard/automaton.py`."""
    letters = {value: letter for letter, value in byte_alphabet().items()}
    texts = {"a": b"a", "C3": b"\xc3", "A9": b"\xa9", "A9 61": b"\xa9a", "A9 C3": b"\xa9\xc3"}
    texts["A3"] = b"\xa3"
    vocab = {"".join(letters[byte] for byte in text): n for n, text in enumerate(texts.values())}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    eos = {"id": len(vocab), "content": "<eos>", "special": True}
    data = {"model": model, "added_tokens": [eos], "decoder": {"type": "ByteLevel"}}
    policy = GuardPolicy(scripts=("Common",), allow="aé")
    automaton = build_automaton(spell_tokens(parse_tokenizer(data)), policy)
    ids = {name: token_id for token_id, name in enumerate([*texts, "<eos>"])}
    inside = automaton.advance(0, ids["C3"])
    assert inside > 0

    def allowed(state: int) -> dict[str, int]:
        refused = automaton.refused(state)
        return {name: automaton.advance(state, i) for name, i in ids.items() if not refused[i]}

    assert allowed(0) == {"a": 0, "C3": inside, "<eos>": 0}
    assert allowed(inside) == {"A9": 0, "A9 61": 0, "A9 C3": inside}


def test_a_character_that_the_vocabulary_cannot_finish_is_not_begun() -> None:
    """Without the byte 80, "가" (EA B0 80) cannot be spelled, but "각" (EA B0 81) can."""
    data = data_of(TINY["byte_level"]())
    vocab = data["model"]["vocab"]
    for token in [token for token in vocab if "Ģ" in token]:  # GPT-2's letter for 80
        del vocab[token]
    spellings = spell_tokens(parse_tokenizer(data))
    begun = [vocab["ê"], vocab["°"]]  # EA B0
    for allow, is_begun in (("가", False), ("각", True)):
        policy = GuardPolicy(scripts=("Common",), allow=allow)
        automaton = build_automaton(spellings, policy, spellings.num_tokens)
        state = automaton.state_after(begun[:1])
        assert bool(automaton.refused(state)[begun[1]]) is not is_begun
        assert (automaton.state_after(begun) > 0) is is_begun


def test_tokens_that_no_text_has_are_refused_in_every_state() -> None:
    alphabet = {letter: n for n, letter in enumerate(byte_alphabet())}
    odd = ("ĤĤĤĤ", "êaaa", "ÿ", "ÀĢ", "íłĢ", "aÿb", "êê", "aĤ", "Ĥaĥ", "ôĲĢĢ")
    vocab = alphabet | {token: 256 + n for n, token in enumerate(odd)}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    spellings = spell_tokens(parse_tokenizer({"model": model, "decoder": {"type": "ByteLevel"}}))
    automaton = build_automaton(spellings, policy_of(languages="ko,en", hanja="all"), len(vocab))
    states = range(automaton.num_states)
    assert all(automaton.refused(state)[256:].all() for state in states)
    assert not all(automaton.refused(state)[vocab["Ĥ"]] for state in states)


def test_a_policy_that_leaves_no_token_is_an_error() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    spellings = spell_tokens(parse_tokenizer({"model": model, "decoder": {"type": "ByteLevel"}}))
    with pytest.raises(KPruneError, match="for Tibetan leaves none of the vocabulary's 2 tokens"):
        build_automaton(spellings, policy_of(scripts="Tibetan"), 2)


def test_building_twice_gives_the_same_tables(vocabulary: Vocabulary) -> None:
    one, two = (build_automaton(vocabulary.spellings, HANJA, vocabulary.num_rows) for _ in range(2))
    assert torch.equal(one.token_class, two.token_class)
    assert torch.equal(one.class_next, two.class_next)


def test_tables_are_small(vocabulary: Vocabulary) -> None:
    for policy in (ENKO, HANJA):
        automaton = vocabulary.automaton(policy)
        assert automaton.num_bytes < 1_500_000
        assert automaton.num_states < 600
