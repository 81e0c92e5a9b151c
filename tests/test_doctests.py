"""The examples in docstrings are right (outside `serving`, whose modules need vLLM)."""

import doctest
import importlib
from pathlib import Path

import pytest

import vllm_kprune

PACKAGE = Path(vllm_kprune.__file__).parent
# Their examples need a model or endpoints: tests/test_python_api.py runs them.
NEED_A_MODEL = {
    *("build_automaton", "build_overlay", "compare_endpoints", "export_overlay"),
    "heal_model",
    "sparsify_model",
    *("load_spellings", "verify_overlay"),
}
FILES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "serving" not in path.parts and ">>> " in path.read_text(encoding="utf-8")
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_the_examples_of_a_module_are_right(path: Path) -> None:
    module = importlib.import_module(module_name(path).removesuffix(".__init__"))
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(module):
        if test.name.rpartition(".")[2] not in NEED_A_MODEL:
            runner.run(test)
    assert runner.failures == 0
