"""Every token id in a configuration is mapped, and doubtful numbers are refused (law 6)."""

from typing import Any

import pytest

from vllm_kprune.checkpoint.token_ids import map_ids, token_texts
from vllm_kprune.errors import KPruneError
from vllm_kprune.tokenizer.prune import IdMap

IDS = IdMap([10, 20, 30])


@pytest.mark.parametrize(
    ("key", "before", "after"),
    [
        ("eos_token_id", 20, 1),
        ("eos_token_id", [10, 30], [0, 2]),
        ("eos_token_id", None, None),
        ("pad_token_id", -1, -1),
        ("eos_token_ids", [10], [0]),
        ("image_token_index", 30, 2),
        ("image_token_idx", 30, 2),
        ("decoder_start_token_id", 10, 0),
        ("forced_bos_token_id", 10, 0),
        ("token_id", 10, 0),
        ("eos_id", 10, 0),
        ("pad_idx", 10, 0),
        ("suppress_tokens", [20, 30], [1, 2]),
        ("begin_suppress_tokens", [20], [1]),
        ("bad_words_ids", [[10, 20], [30]], [[0, 1], [2]]),
        ("forced_decoder_ids", None, None),
        ("text_config", {"bos_token_id": 20}, {"bos_token_id": 1}),
        ("a", [{"b": {"pad_token_id": 30}}], [{"b": {"pad_token_id": 2}}]),
    ],
)
def test_ids_are_mapped_at_any_depth(key: str, before: Any, after: Any) -> None:
    value = {key: before, "vocab_size": 10}
    assert map_ids(value, IDS.required, "config.json") == {key: after, "vocab_size": 10}
    assert value == {key: before, "vocab_size": 10}


@pytest.mark.parametrize(
    "key",
    [
        *("max_new_tokens", "min_tokens", "num_image_tokens", "mm_tokens_per_image"),
        *("max_num_batched_tokens", "num_experts_per_token", "token_dropout", "n_tokens"),
        *("tokens_per_second", "image_token_length", "hidden_size", "vocab_size", "head_dim"),
        *("router_aux_token_weight", "token_type_size", "total_tokens", "id", "video_id"),
    ],
)
def test_counts_and_sizes_are_left_alone(key: str) -> None:
    assert map_ids({key: 10}, IDS.required, "config.json") == {key: 10}


@pytest.mark.parametrize("item", ["<image>", True, None, 0.5, ["<a>"], {"content": "<a>"}, []])
def test_names_of_tokens_are_left_alone_unless_they_hold_whole_numbers(item: Any) -> None:
    assert map_ids({"image_token": item}, IDS.required, "x") == {"image_token": item}


@pytest.mark.parametrize("item", [10, 0, -1, [10], [[20]]])
def test_a_number_under_an_unknown_name_of_tokens_is_refused(item: Any) -> None:
    with pytest.raises(KPruneError, match=r"config.json: text: video_start_token holds .*report"):
        map_ids({"text": {"video_start_token": item}}, IDS.required, "config.json")


@pytest.mark.parametrize(
    ("key", "item"),
    [
        ("eos_token_id", "</s>"),
        ("eos_token_id", 10.0),
        ("eos_token_id", {"id": 10}),
        ("forced_decoder_ids", [[1, 10]]),
        ("sequence_bias", [[[10], 20]]),
    ],
)
def test_ids_in_a_form_that_cannot_be_mapped_are_refused(key: str, item: Any) -> None:
    with pytest.raises(KPruneError, match=f"x.json: {key} holds"):
        map_ids({key: item}, IDS.required, "x.json")


def test_an_id_that_was_not_kept_is_an_error_with_its_place() -> None:
    value = {"text_config": {"eos_token_id": [10, 11]}}
    with pytest.raises(KPruneError, match=r"config.json: text_config: eos_token_id .* id 11,"):
        map_ids(value, IDS.required, "config.json")


def test_texts_of_tokens_are_found_in_all_their_forms() -> None:
    value = {
        "bos_token": "<a>",
        "eos_token": {"content": "<b>", "lstrip": False},
        "additional_special_tokens": ["<c>", {"content": "<d>"}],
        "extra_special_tokens": {"image_token": "<e>"},
        "pad_token": None,
        "tokenizer_class": "<no>",
    }
    assert set(token_texts(value)) == {"<a>", "<b>", "<c>", "<d>", "<e>"}
    assert list(token_texts(["<a>"])) == []
