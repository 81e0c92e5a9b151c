"""Families are found by architecture; one that is not known says how to add it."""

from typing import Any

import pytest

from vllm_kprune.checkpoint.families import FAMILIES, find_family
from vllm_kprune.errors import KPruneError


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_a_family_is_found_by_its_architecture(architecture: str) -> None:
    assert find_family({"architectures": ["X", architecture]}, "x").architecture == architecture


def test_an_unknown_family_names_the_known_ones_and_the_table() -> None:
    with pytest.raises(KPruneError, match=r"family Novel \(known: Gemma3.*checkpoint/families.py"):
        find_family({"architectures": ["Novel"]}, "config.json")


@pytest.mark.parametrize("value", [None, [], "LlamaForCausalLM", {}])
def test_a_config_without_architectures_is_refused(value: Any) -> None:
    with pytest.raises(KPruneError, match="no 'architectures'"):
        find_family({"architectures": value}, "config.json")


def test_architectures_of_another_type_are_refused() -> None:
    with pytest.raises(KPruneError, match="does not know the family"):
        find_family({"architectures": [{}, 1]}, "config.json")
