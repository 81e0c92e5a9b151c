"""The rows of a pruned head: an order in which profiles are prefixes, and its cache."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_folders import save_model

from vllm_kprune.checkpoint import head
from vllm_kprune.checkpoint.head import HeadRows, head_rows, order_rows
from vllm_kprune.checkpoint.plan import make_plan
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile

IDS = st.sets(st.integers(0, 60), min_size=1)


def rows_of(kept: list[set[int]]) -> HeadRows:
    return order_rows(tuple(f"p{i}" for i in range(len(kept))), [sorted(one) for one in kept])


@given(st.lists(IDS, min_size=1, max_size=8))
def test_every_token_of_every_profile_has_one_row_before_the_profiles_end(
    kept: list[set[int]],
) -> None:
    rows = rows_of(kept)
    assert sorted(rows.ids.tolist()) == sorted(set().union(*kept))
    for number, (ids, end) in enumerate(zip(kept, rows.ends, strict=True)):
        assert set(rows.kept(number).tolist()) == ids
        assert ids <= set(rows.ids[:end].tolist())
        assert int(rows.ids[end - 1]) in ids  # the end is not later than it has to be
    assert rows.tokens == tuple(map(len, kept))


@given(st.lists(IDS, min_size=2, max_size=8))
def test_nested_profiles_are_prefixes_of_one_order(parts: list[set[int]]) -> None:
    nested = [set().union(*parts[: n + 1]) for n in range(len(parts))]
    rows = rows_of(nested[::-1])
    for ids, end in zip(nested[::-1], rows.ends, strict=True):
        assert set(rows.ids[:end].tolist()) == ids


@given(st.lists(IDS, min_size=1, max_size=4), st.integers(1, 70))
def test_tokens_past_the_head_are_left_out_and_the_others_stay_in_order(
    kept: list[set[int]], vocabulary: int
) -> None:
    rows, less = rows_of(kept), rows_of(kept).within(vocabulary)
    assert less.ids.tolist() == [i for i in rows.ids.tolist() if i < vocabulary]
    for number, end in enumerate(less.ends):
        ids = {i for i in kept[number] if i < vocabulary}
        assert set(less.kept(number).tolist()) == ids <= set(less.ids[:end].tolist())


@pytest.mark.slow
def test_the_kept_tokens_are_those_of_a_pruned_vocabulary(
    tmp_path: Path, corpus: Path, small_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    model = save_model(tmp_path / "model")
    rows = head_rows(model, [small_profile], corpora=[corpus])
    selection = make_plan(model, small_profile, corpora=[corpus]).selection
    assert tuple(rows.ids.tolist()) == selection.kept_ids
    assert rows.profiles == (small_profile.name,)


@pytest.mark.slow
def test_what_is_kept_is_selected_once_and_again_if_the_entry_is_damaged(
    tmp_path: Path, corpus: Path, small_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    model = save_model(tmp_path / "model")
    chosen = []
    choose = head.choose_tokens
    monkeypatch.setattr(head, "choose_tokens", lambda *how: chosen.append(how) or choose(*how))
    first = head_rows(model, [small_profile], corpora=[corpus])
    again = head_rows(model, [small_profile], corpora=[corpus])
    assert len(chosen) == 1
    assert np.array_equal(first.ids, again.ids)
    [entry] = (tmp_path / "cache" / "heads").glob("*.json")
    for damage in (b"", b"[]", b"[2, 1]", b'{"ids": [1]}', b"[true]", b"[" * 10_000):
        entry.write_bytes(damage)
        repaired = head_rows(model, [small_profile], corpora=[corpus])
        assert np.array_equal(first.ids, repaired.ids)
    assert len(chosen) == 7


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "got 0 profiles for the head, expected 1 to 8"),
        (["a"] * 2, "profiles of one name for the head: a, a"),
        ([f"p{i}" for i in range(9)], "got 9 profiles"),
    ],
)
def test_too_few_too_many_and_equal_names_are_refused(
    names: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(KPruneError, match=message):
        head_rows(tmp_path, [Profile(name=name) for name in names])
