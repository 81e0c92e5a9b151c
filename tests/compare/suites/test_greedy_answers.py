"""Why two greedy answers differ: each legitimate reason, and what remains unexplained."""

from collections.abc import Mapping

import pytest

from vllm_kprune.compare.suites.greedy_answers import (
    GreedyAnswer,
    Vocabularies,
    explain,
    logit_step,
)
from vllm_kprune.tokenizer.bpe import BpeTokenizer

KEPT = (0, 2, 3, 5)
PROMPT = (0,)


def words() -> Vocabularies:
    tokens = ["<bos>", "日", "서", "울", "東", "a"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return Vocabularies(BpeTokenizer({}, vocab, (), (), "byte_fallback"), KEPT)


def original(ids: tuple[int, ...], *best: Mapping[int, float], prompt=PROMPT) -> GreedyAnswer:
    places = best or tuple({token: 20.0, 0: 10.0} for token in ids)
    return GreedyAnswer("", prompt, ids, tuple(places))


def pruned(ids: tuple[int, ...], prompt: tuple[int, ...] = (0,)) -> GreedyAnswer:
    """An answer of the pruned model, with ids of its own vocabulary."""
    return GreedyAnswer("", prompt, ids, ())


def test_answers_that_map_onto_each_other_are_identical() -> None:
    assert explain(original((2, 3, 5)), pruned((1, 2, 3)), words()) is None


def test_a_token_that_was_pruned_is_named_with_its_script() -> None:
    difference = explain(original((2, 4)), pruned((1, 2)), words())
    assert difference is not None
    assert (difference.kind, difference.position) == ("pruned token", 1)
    assert "東" in difference.detail and "Han" in difference.detail


def test_a_token_of_byte_level_bpe_is_named_by_its_text_or_else_by_its_bytes() -> None:
    vocab = {"æĿ±": 0, "æĿ": 1}  # the bytes of 東, and two of them, in GPT-2's alphabet
    words = Vocabularies(BpeTokenizer({}, vocab, (), (), "byte_level"), (0, 1))
    assert words.describe(0) == "'東' (Han, id 0)"
    assert words.describe(1).startswith(r"b'\xe6\x9d' (")


def test_two_logits_within_one_step_of_bfloat16_are_a_tie() -> None:
    difference = explain(original((2,), {2: 20.125, 3: 20.0}), pruned((2,)), words())
    assert difference is not None
    assert (difference.kind, difference.gap) == ("tie", 0.125)


@pytest.mark.parametrize(
    "best", [{2: 20.25, 3: 20.0}, {2: 20.0, 5: 20.0}], ids=["two steps apart", "third token"]
)
def test_any_other_difference_is_unexplained(best: Mapping[int, float]) -> None:
    difference = explain(original((2,), best), pruned((2,)), words())
    assert difference is not None
    assert difference.kind == "unexplained"


def test_an_answer_that_ends_early_is_unexplained() -> None:
    difference = explain(original((2, 3)), pruned((1,)), words())
    assert difference is not None
    assert (difference.kind, difference.position) == ("unexplained", 1)


def test_a_prompt_that_needs_a_pruned_token_is_told_before_the_answers() -> None:
    difference = explain(original((2,), prompt=(1,)), pruned((1,), prompt=(1, 2)), words())
    assert difference is not None
    assert difference.kind == "prompt"
    assert "日" in difference.detail


@pytest.mark.parametrize(
    ("value", "dtype", "step"),
    [
        (1.0, "bfloat16", 2**-7),
        (-20.0, "bfloat16", 0.125),
        (20.0, "float16", 2**-6),
        (0.0, "bfloat16", 0.0),
    ],
)
def test_the_step_of_a_type_is_the_distance_to_its_next_number(
    value: float, dtype: str, step: float
) -> None:
    assert logit_step(value, dtype) == step
