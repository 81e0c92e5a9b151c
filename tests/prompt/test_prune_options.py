"""What requests may ask of the input pruner; hostile values are named, not obeyed."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.options import PruneRequest, parse_prune_request, prune_options

_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=100),
    lambda inner: st.lists(inner, max_size=70),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([one.name for one in prune_options()]), _ANY, max_size=4))
@settings(max_examples=200)
@pytest.mark.slow
def test_any_value_is_taken_or_refused_in_a_line(given_options: dict[str, object]) -> None:
    try:
        options = parse_prune_request(given_options).options
    except KPruneError as error:
        assert len(str(error)) < 400
        assert "\n" not in str(error)
        return
    assert 0 < options.keep <= 1
    assert options.target_tokens is None or options.target_tokens >= 1
    assert min(options.force_first, options.force_last, options.min_tokens) >= 0


def test_what_is_not_given_is_the_servers() -> None:
    default = PruneRequest(PruneOptions(keep=0.8, unit="word", force_digits=True), strict=True)
    assert parse_prune_request({}, default) == default
    asked = parse_prune_request({"keep": "0.5", "force_digits": False, "roles": "user"}, default)
    assert asked == PruneRequest(PruneOptions(keep=0.5, unit="word"), roles=("user",), strict=True)


def test_keep_replaces_a_target_of_the_server() -> None:
    default = PruneRequest(PruneOptions(target_tokens=100))
    assert parse_prune_request({"keep": 0.9}, default).options == PruneOptions(keep=0.9)
    assert parse_prune_request({"keep": "off"}, default).options.does_nothing
    assert not parse_prune_request({"target_tokens": 50}).options.does_nothing


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({"kep": 0.5}, "did you mean 'keep'"),
        ({"keep": 0}, "expected a share of the tokens, above 0 and at most 1, or off"),
        ({"keep": True}, "got True"),
        ({"keep": math.nan}, "got nan"),
        ({"keep": "1e400"}, "above 0"),
        ({"keep": 0.5, "target_tokens": 9}, "give one of them"),
        ({"target_tokens": 1.5}, "expected a number of tokens from 1 to 10,000,000"),
        ({"min_tokens": -1}, "expected a number of tokens from 0"),
        ({"unit": "sentence"}, "expected token or word"),
        ({"scorer": "best"}, "expected sentences, rarity, question, attention or random"),
        ({"force_tokens": ["a"] * 65}, "got 65 values, expected at most 64"),
        ({"force_tokens": ""}, "1 to 64 characters"),
        ({"force_digits": "perhaps"}, "expected true or false"),
        ({"roles": "user,nobody"}, "expected user, assistant, system, developer or tool"),
    ],
)
def test_wrong_values_name_the_right_ones(given_options: dict[str, object], message: str) -> None:
    with pytest.raises(KPruneError, match=message):
        parse_prune_request(given_options)
