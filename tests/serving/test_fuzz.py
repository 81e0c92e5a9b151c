"""Every reader of what comes from outside, for a moment; `make fuzz` tries the same for hours."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fuzz_targets import TARGETS, attempt, seeds
from support.malformed import malformed_bytes

pytestmark = pytest.mark.usefixtures("vllm_ready")

_EXAMPLES = 25


@pytest.mark.parametrize("target", TARGETS)
def test_bytes_near_sound_ones_are_read_or_refused_in_one_line(target: str) -> None:
    draw = random.Random(target)
    for seed in seeds()[target]:
        attempt(target, seed)
        variants = list(malformed_bytes(seed, _EXAMPLES, draw.randrange(1 << 30)))
        for data in variants:
            began = time.process_time()
            attempt(target, data)
            assert time.process_time() - began < 5, data[:500]


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=_EXAMPLES)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(target: str, data: bytes) -> None:
    attempt(target, data)


SOUND = sorted(TARGETS.keys() - {"http", "xargs", "header"})


@pytest.mark.parametrize("target", SOUND)
def test_what_the_fuzzer_begins_with_is_accepted(target: str) -> None:
    """Or it would try nothing but refusals."""
    assert attempt(target, seeds()[target][0]) is None


@pytest.mark.parametrize(
    "data",
    [
        b'{"messages": [{"role": "\\ud800", "content": "a"}], "keep": 0.5}',
        b'{"prompt": "a", "keep": "0.5' + b"0" * 40 + b'junk"}',
        b'{"prompt": "a", "keep": 0.5, "keep": 0.6}',
        b'{"prompt": "a", "keep": NaN}',
        b'{"prompt": "a", "keep": "1_0"}',
        '{"prompt": "a", "keep": "٠.٥"}'.encode(),
        b'{"prompt": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    ],
)
def test_bodies_that_were_once_taken_for_sound(data: bytes) -> None:
    assert attempt("body", data) is not None
    attempt("http", data)
