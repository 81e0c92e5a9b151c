"""Families are found by architecture; one that is not known says how to add it."""

from typing import Any

import pytest

from vllm_kprune.checkpoint.families import FAMILIES, find_family, with_implied_ids
from vllm_kprune.errors import KPruneError


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_a_family_is_found_by_its_architecture(architecture: str) -> None:
    assert find_family({"architectures": ["X", architecture]}, "x").architecture == architecture


def test_an_unknown_family_names_the_known_ones_and_the_table() -> None:
    with pytest.raises(KPruneError, match=r"family Novel \(known: Cohere.*checkpoint/families.py"):
        find_family({"architectures": ["Novel"]}, "config.json")


@pytest.mark.parametrize("value", [None, [], "LlamaForCausalLM", {}])
def test_a_config_without_architectures_is_refused(value: Any) -> None:
    with pytest.raises(KPruneError, match="no 'architectures'"):
        find_family({"architectures": value}, "config.json")


def test_architectures_of_another_type_are_refused() -> None:
    with pytest.raises(KPruneError, match="does not know the family"):
        find_family({"architectures": [{}, 1]}, "config.json")


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"),
        ("model.language_model.embed_tokens.weight", "lm_head.weight"),
    ],
)
def test_both_spellings_of_multimodal_gemma_are_known(embedding: str, head: str) -> None:
    family = FAMILIES["Gemma3ForConditionalGeneration"].spelled_in({embedding, head, "other"})
    assert (family.embedding, family.head) == (embedding, head)


IMPLIED = {"boi_token_index": 3, "eos_token_id": 2, "text_config": {"pad_token_id": 0}}


@pytest.mark.parametrize(
    ("config", "filled"),
    [
        ({}, {"boi_token_index": 3, "eos_token_id": 2, "text_config": {"pad_token_id": 0}}),
        (
            {"eos_token_id": None, "boi_token_id": 7, "text_config": {"a": 1}},
            {"eos_token_id": None, "boi_token_id": 7, "text_config": {"a": 1, "pad_token_id": 0}},
        ),
        (
            {"eos_token_id": [5], "text_config": {"pad_token_id": 6}},
            {"eos_token_id": [5], "boi_token_index": 3, "text_config": {"pad_token_id": 6}},
        ),
    ],
)
def test_ids_that_a_config_leaves_out_are_filled_in_and_no_other_is_touched(
    config: dict[str, Any], filled: dict[str, Any]
) -> None:
    assert with_implied_ids(config, IMPLIED, range(10)) == filled


def test_an_implied_id_that_the_tokenizer_lacks_stays_out() -> None:
    assert with_implied_ids({}, {"bos_token_id": 5, "eos_token_id": 255_001}, range(10)) == {
        "bos_token_id": 5
    }


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_implied_ids_and_tying_are_those_of_the_configuration_class(architecture: str) -> None:
    """What transformers assumes of a config.json that says nothing."""
    import transformers

    family = FAMILIES[architecture]
    config = getattr(transformers, architecture).config_class()
    text = config.get_text_config()
    assert text.tie_word_embeddings is family.ties_by_default
    named = dict(family.implied_ids)
    in_text = named.pop(family.text_config, named) if family.text_config else named
    assert {key: getattr(config, key) for key in named} == named
    ids = {key: getattr(text, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    assert {key: value for key, value in ids.items() if value is not None} == in_text
