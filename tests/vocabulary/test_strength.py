"""Tokens are ranked by estimated shares of text: casings and marks share a word's frequency."""

from collections.abc import Mapping

import numpy as np

from vllm_kprune.tokenizer.bpe import BpeTokenizer, parse_tokenizer
from vllm_kprune.tokenizer.steps import merge_steps
from vllm_kprune.vocabulary.evidence import Source, TokenRates
from vllm_kprune.vocabulary.strength import weigh_evidence

# Learned in this order: the name only with a capital, one mark before the word.
WORDS = ["the", " the", " Tesla", "_the", " der"]


def parsed() -> BpeTokenizer:
    """A byte-level vocabulary that learned the words one after the other, letter by letter."""
    spelled = [word.replace(" ", "Ġ") for word in WORDS]
    tokens = dict.fromkeys("".join(spelled))
    merges = []
    for word in spelled:
        for end in range(1, len(word)):
            merges.append([word[:end], word[end]])
            tokens[word[: end + 1]] = None
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    return parse_tokenizer({"model": model, "decoder": {"type": "ByteLevel"}})


def rates(
    tokenizer: BpeTokenizer, observed: Mapping[str, float], words: Mapping[str, float] | None
) -> TokenRates:
    per_million = np.zeros(max(tokenizer.tokens) + 1)
    for text, rate in observed.items():
        per_million[token_id(tokenizer, text)] = rate
    source = Source("x", "digest", lambda: iter(()), None if words is None else lambda: words)
    return TokenRates(source, per_million, 1_000_000)


def token_id(tokenizer: BpeTokenizer, text: str) -> int:
    return next(i for i in tokenizer.tokens if tokenizer.token_bytes(i) == text.encode())


def strengths(
    observed: Mapping[str, float], words: Mapping[str, float] | None = None
) -> dict[str, float]:
    tokenizer = parsed()
    ids = [token_id(tokenizer, text) for text in WORDS]
    found = weigh_evidence(tokenizer, [rates(tokenizer, observed, words)], ids, []).strengths
    return dict(zip(WORDS, (float(found[i]) for i in ids), strict=True))


def test_a_token_without_evidence_has_none_however_early_it_was_learned() -> None:
    found = strengths({" Tesla": 5.0})
    assert found["the"] == found[" der"] == 0
    assert found[" Tesla"] > 0


def test_a_name_has_the_frequency_of_its_word_though_lists_are_in_lower_case() -> None:
    found = strengths({}, {"tesla": 1e-6})
    assert found[" Tesla"] > 0
    assert found[" the"] == 0


def test_the_tokens_of_one_word_share_its_frequency_those_learned_first_the_most() -> None:
    found = strengths({"the": 90.0})
    assert found["the"] > found[" the"] > found["_the"] > 0


def test_more_evidence_is_more_strength_and_sources_add_up() -> None:
    assert strengths({" der": 20.0})[" der"] > strengths({" der": 10.0})[" der"]
    tokenizer = parsed()
    both = [rates(tokenizer, {" der": 10.0}, None)] * 2
    wanted = token_id(tokenizer, " der")
    doubled = weigh_evidence(tokenizer, both, [wanted], []).strengths[wanted]
    assert np.isclose(doubled, strengths({" der": 20.0})[" der"])


def test_a_step_is_as_strong_as_all_that_is_built_from_it() -> None:
    tokenizer = parsed()
    ids = sorted(i for token, i in tokenizer.vocab.items() if len(token) > 1)
    evidence = weigh_evidence(
        tokenizer, [rates(tokenizer, {" the": 5, " Tesla": 3}, None)], ids, []
    )
    for owner in ids:
        for step in merge_steps(tokenizer, [owner]).steps:
            assert evidence.strengths[step] >= evidence.strengths[owner]
    # " the" is built by " t", " th" and " the"; each costs one token if it is not there.
    assert [evidence.losses[0, token_id(tokenizer, t)] for t in (" t", " th", " the")] == [5, 5, 5]


def test_what_foreign_tokens_lose_counts_for_the_steps_on_the_way_to_them() -> None:
    tokenizer = parsed()
    step = token_id(tokenizer, " th")
    evidence = weigh_evidence(tokenizer, [rates(tokenizer, {" the": 5.0}, None)], [step], [])
    assert evidence.losses[0].nonzero()[0].tolist() == [step]
    assert evidence.tokens[0] == 0.0
