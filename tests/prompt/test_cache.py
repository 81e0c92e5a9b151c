"""The cache of pruned segments: limited in bytes; the least recently used go first."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kprune.prompt.cache import CachedSegment, SegmentCache

KEYS = st.sampled_from(["a", "b", "가나다", "x" * 3000])


def segment(text: str) -> CachedSegment:
    return CachedSegment(text, len(text), len(text))


@given(st.lists(st.tuples(st.booleans(), KEYS, st.integers(0, 6000)), max_size=40))
@settings(max_examples=200)
@pytest.mark.slow
def test_it_is_never_larger_than_allowed_and_gives_what_was_put(
    steps: list[tuple[bool, str, int]],
) -> None:
    cache = SegmentCache(8000)
    last: dict[str, CachedSegment] = {}
    for put, text, size in steps:
        if put:
            last[text] = segment("y" * size)
            cache.put(text, "how", last[text])
        else:
            found = cache.get(text, "how")
            assert found is None or found is last[text]
        assert 0 <= cache.bytes <= cache.max_bytes
        assert bool(cache.bytes) == bool(len(cache))


def test_the_least_recently_used_goes_first() -> None:
    cache = SegmentCache(3 * 1000)
    for text in "abc":
        cache.put(text, "", segment("y" * 400))
    assert cache.get("a", "")
    cache.put("d", "", segment("y" * 400))
    assert cache.get("b", "") is None
    assert all(cache.get(text, "") for text in "acd")
    assert (cache.hits, cache.misses) == (4, 1)


def test_what_decides_the_result_is_part_of_the_key() -> None:
    cache = SegmentCache(10_000)
    cache.put("bc", "a", segment("1"))
    assert cache.get("c", "ab") is None
    assert cache.get("bc", "a") == segment("1")


def test_a_segment_larger_than_the_cache_is_not_kept() -> None:
    cache = SegmentCache(1000)
    cache.put("a", "", segment("y"))
    cache.put("a", "", segment("y" * 2000))
    assert cache.get("a", "") is None
    assert cache.bytes == 0
