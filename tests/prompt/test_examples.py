"""The examples in the docstrings of the prompt room are true."""

import doctest
from importlib import import_module

import pytest

MODULES = ("attention", "marks", "pieces", "products", "pruner", "rarity", "segments", "separators")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name: str) -> None:
    result = doctest.testmod(import_module(f"vllm_kprune.prompt.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
