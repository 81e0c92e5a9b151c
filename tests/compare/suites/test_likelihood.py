"""Log-probabilities of continuations, from texts alone."""

from hypothesis import given
from hypothesis import strategies as st
from support.mock_endpoint import scoring

from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.suites.likelihood import (
    context_request,
    likelihood,
    split_space,
    whole_request,
)

TEXT = st.text(st.sampled_from("가나 ab\n"), min_size=1, max_size=12)


@given(TEXT, TEXT)
def test_moving_spaces_changes_nothing_of_the_whole(context: str, continuation: str) -> None:
    before, after = split_space(context, continuation)
    assert before + after == context + continuation
    assert not before or not before[-1].isspace()


@given(TEXT, TEXT, TEXT)
def test_likelihoods_of_parts_add_up(context: str, first: str, second: str) -> None:
    def known(before: str, after: str) -> float:
        found = likelihood(
            scoring(context_request(before, 0)), scoring(whole_request(before, after, 0))
        )
        assert found is not None
        return found.total

    parts = known(context, first) + known(context + first, second)
    assert abs(known(context, first + second) - parts) < 1e-9


def test_without_a_context_only_the_first_token_goes_uncounted() -> None:
    found = likelihood(None, Answer(prompt_logprobs=(None, -1.0, -2.0)))
    assert found is not None
    assert (found.total, found.tokens, found.mean) == (-3.0, 2, -1.5)


def test_an_endpoint_that_tells_too_little_gives_no_figure() -> None:
    whole = Answer(prompt_logprobs=(None, -1.0, None))
    assert likelihood(Answer(prompt_tokens=None), whole) is None
    assert likelihood(Answer(prompt_tokens=1), Answer()) is None
    assert likelihood(Answer(prompt_tokens=1), whole) is None  # a hole in the continuation
    assert likelihood(Answer(prompt_tokens=3), whole) is None  # nothing beyond the context
