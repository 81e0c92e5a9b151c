"""A request chooses one of the head's profiles: what is checked, counted and passed to the head."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from vllm_kprune.checkpoint.head import HeadRows, order_rows
from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.endpoint import head_status
from vllm_kprune.serving.environment import HEAD_PROFILES
from vllm_kprune.serving.guard.attach import refuse_beam_options
from vllm_kprune.serving.head import counts, hooks
from vllm_kprune.serving.head.rows import check_choice
from vllm_kprune.serving.head.state import serve_profiles, take_profiles
from vllm_kprune.serving.settings import ServerSettings, attach_settings


@pytest.fixture
def rows() -> HeadRows:
    return order_rows(("enko", "small", "other"), [[1, 2, 3, 4], [2, 3], [3, 5]])


@pytest.fixture
def served(rows: HeadRows) -> Any:
    serve_profiles(rows.profiles)
    yield rows
    serve_profiles(())


def test_a_choice_is_one_of_the_servers_profiles(rows: HeadRows) -> None:
    for extra in (None, {}, {"kprune_head": "small"}, {"kprune_languages": "en"}):
        check_choice(rows, extra)
    with pytest.raises(KPruneError) as caught:
        check_choice(rows, {"kprune_head": "smal"})
    expected = "kprune_head: got 'smal', this server has enko, small and other"
    assert expected in str(caught.value)
    # Over HTTP, `vllm_xargs` may be numbers and lists, too.
    for wrong in (0, ["small"], 1.5):
        with pytest.raises(KPruneError, match="this server has enko"):
            check_choice(rows, {"kprune_head": wrong})


def test_a_server_without_a_pruned_head_refuses_the_choice() -> None:
    with pytest.raises(KPruneError, match="head is not pruned; leave the option out"):
        check_choice(None, {"kprune_head": "enko"})


def test_a_beam_search_gets_the_servers_profile() -> None:
    refuse_beam_options({"kprune_keep": "0.5"})
    with pytest.raises(KPruneError, match="passes no options to beam searches; leave kprune_head"):
        refuse_beam_options({"kprune_head": "enko"})


def test_the_status_tells_tokens_and_rows_of_each_profile(rows: HeadRows) -> None:
    model = SimpleNamespace(get_vocab_size=lambda: 9, model="m")
    config = SimpleNamespace(model_config=model, additional_config={})
    attach_settings(config, ServerSettings(head_rows=rows, given=True))
    assert head_status(config) == {
        "active": True,
        "profile": "enko",
        "profiles": [
            {"name": "enko", "tokens": 4, "rows": 5},
            {"name": "small", "tokens": 2, "rows": 2},
            {"name": "other", "tokens": 2, "rows": 3},
        ],
        "rows": {"original": 9, "kept": 5},
        "request_options": ["kprune_head"],
    }


def test_requests_are_counted_by_profile(rows: HeadRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HEAD_PROFILES, "")  # restored afterwards
    counts.note_profiles(rows)
    counts.show_requests()

    def counted(profile: str) -> float | None:
        return REGISTRY.get_sample_value("kprune_head_requests_total", {"profile": profile})

    assert [counted(name) for name in rows.profiles] == [0, 0, 0]
    for extra in (None, {"kprune_head": "small"}, {}, {"kprune_head": "enko"}):
        counts.count_request(extra)
    assert [counted(name) for name in rows.profiles] == [3, 1, 0]
    sizes = [REGISTRY.get_sample_value("kprune_head_rows", {"profile": n}) for n in rows.profiles]
    assert sizes == [5, 2, 3]
    REGISTRY.unregister(counts._counter())
    REGISTRY.unregister(REGISTRY._names_to_collectors["kprune_head_rows"])
    counts._counter.cache_clear()


def test_on_v1_a_request_has_a_row_for_each_draft_and_one_more(served: HeadRows) -> None:
    asked = {"a": {"kprune_head": "small"}, "b": None, "c": {"kprune_head": "other"}}
    requests = {
        name: SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra))
        for name, extra in asked.items()
    }
    batch = SimpleNamespace(req_ids=["c", "a", "b"])
    runner = SimpleNamespace(requests=requests, input_batch=batch)
    step = SimpleNamespace(scheduled_spec_decode_tokens={"a": [7, 7], "c": [7]})

    def execute(runner: Any, step: Any, extra: int) -> Any:
        return take_profiles(6), take_profiles(6), extra

    assert hooks._v1_step(execute, runner, step, 5) == ([2, 2, 1, 1, 1, 0], None, 5)


def test_on_v2_a_slot_has_the_profile_of_the_request_that_entered_last(served: HeadRows) -> None:
    sampler = SimpleNamespace(needs_logits_processing=np.zeros(4, bool))
    seen: list[int] = []
    for slot, name in ((3, "small"), (0, "other"), (3, None), (1, "small")):
        params = SimpleNamespace(extra_args={"kprune_head": name} if name else None)
        hooks._v2_add(lambda sampler, slot, params: seen.append(slot), sampler, slot, params)
    assert seen == [3, 0, 3, 1]
    batch = SimpleNamespace(
        cu_num_logits_np=np.array([0, 1, 3, 4]), idx_mapping_np=np.array([1, 0, 3])
    )
    runner = SimpleNamespace(sampler=sampler)
    sample = hooks._v2_sample(lambda *_: take_profiles(4), runner, None, batch, None)
    assert sample == [1, 2, 2, 0]


def test_a_head_of_one_profile_watches_no_steps(rows: HeadRows) -> None:
    serve_profiles(("enko",))
    assert hooks._v1_step(lambda *_: take_profiles(3), None, None) is None
    assert hooks._v2_sample(lambda *_: take_profiles(3), None, None, None, None) is None
    serve_profiles(())
