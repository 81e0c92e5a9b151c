"""The table over bytes accepts the UTF-8 of the allowed characters, and has no state too many."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.guard_oracle import SETTINGS

from vllm_kprune.guard.characters import NUM_CODE_POINTS
from vllm_kprune.guard.utf8 import REFUSED, byte_table, walk

pytestmark = pytest.mark.slow

EDGES = [0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x3FFFF, 0x40000, 0x10FFFF]
CODE_POINTS = st.sampled_from(EDGES) | st.integers(0, 0xD7FF) | st.integers(0xE000, 0x10FFFF)
MANY = settings(SETTINGS, max_examples=100)


def table_of(code_points: set[int]) -> np.ndarray:
    allowed = np.zeros(NUM_CODE_POINTS, np.bool_)
    allowed[list(code_points)] = True
    return byte_table(allowed)


def state_after(table: np.ndarray, text: bytes) -> int:
    state = 0
    for byte in text:
        state = int(table[state, byte])
    return state


@MANY
@given(code_points=st.sets(CODE_POINTS, max_size=30), others=st.sets(CODE_POINTS, max_size=30))
def test_exactly_the_allowed_characters_lead_back_to_state_0(
    code_points: set[int], others: set[int]
) -> None:
    table = table_of(code_points)
    for code in code_points | others:
        whole = chr(code).encode()
        assert state_after(table, whole) == (0 if code in code_points else REFUSED)
        if code in code_points:
            assert all(state_after(table, whole[:n]) > 0 for n in range(1, len(whole)))


@MANY
@given(code_points=st.sets(CODE_POINTS, min_size=1, max_size=30), text=st.binary(max_size=6))
def test_bytes_that_are_no_utf8_are_refused(code_points: set[int], text: bytes) -> None:
    table = table_of(code_points)
    try:
        is_whole = {ord(character) for character in text.decode()} <= code_points
    except UnicodeDecodeError:
        is_whole = False
    assert (state_after(table, text) == 0) == is_whole


def test_overlong_forms_and_surrogates_are_refused() -> None:
    table = table_of({*range(0xD800), *range(0xE000, NUM_CODE_POINTS)})
    for text in (b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xf0\x80\x80\x80"):
        assert state_after(table, text) == REFUSED
    for text in (b"\xf0\x8f\xbf\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80"):
        assert state_after(table, text) == REFUSED
    for byte in (*range(0x80, 0xC2), *range(0xF5, 0x100)):
        assert table[0, byte] == REFUSED


@MANY
@given(code_points=st.sets(CODE_POINTS, max_size=30))
def test_every_state_is_reached_and_no_two_have_the_same_completions(
    code_points: set[int],
) -> None:
    table = table_of(code_points)
    whole = [chr(code).encode() for code in code_points]
    reached = {state_after(table, text[:n]) for text in whole for n in range(len(text))}
    assert reached | {0} == set(range(len(table) - 1))
    assert len(np.unique(table[:-1], axis=0)) == len(table) - 1
    assert (table[-1] == REFUSED).all()


def test_walking_goes_over_many_parts_at_once() -> None:
    table = table_of({0xE9, 0xAC00, 0x1F600})
    texts = [b"\xc3", b"\xea\xb0", b"\xf0\x9f\x98", b"\x80", b"\xff"]
    parts = np.array([[*text.ljust(3, b"\0")] for text in texts], np.uint8)
    lengths = np.array([len(text) for text in texts], np.int32)
    [found] = walk(table, np.zeros(1, np.int16), parts, lengths)
    assert found.tolist() == [state_after(table, text) for text in texts]
    assert walk(table, found[:3], parts[3:4], lengths[3:4])[:, 0].tolist() == [
        *(REFUSED, 0, 0)  # E9 is C3 A9
    ]
