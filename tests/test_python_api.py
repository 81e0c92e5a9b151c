"""The Python API: an exact list, light to import, and each name does what its docstring shows."""

import ast
import doctest
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.mock_endpoint import MockEndpoint
from support.tiny_architectures import ARCHITECTURES
from support.tiny_folders import save_model
from tokenizers import Tokenizer

import vllm_kprune
from vllm_kprune import (
    GuardPolicy,
    InputPruner,
    KPruneError,
    Profile,
    build_automaton,
    build_overlay,
    export_overlay,
    load_profile,
    load_spellings,
    verify_overlay,
)
from vllm_kprune.sparsify.options import SparsifyOptions
from vllm_kprune.sparsify.run import sparsify_model

API = [
    "Automaton",
    "GuardPolicy",
    "HealOptions",
    "InputPruner",
    "KPruneError",
    "LawResult",
    "Manifest",
    "Profile",
    "SparsifyOptions",
    "__version__",
    "build_automaton",
    "build_overlay",
    "compare_endpoints",
    "export_overlay",
    "heal_model",
    "load_profile",
    "load_spellings",
    "sparsify_model",
    "verify_overlay",
]
FUNCTIONS = [name for name in API if name.islower() and name != "__version__"]
THAI = Profile(name="thai", languages=("th",), code=False)
LINES = ["a line of text", "สวัสดี", "한국어 \U0001f600"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a byte-fallback tokenizer."""
    return save_model(tmp_path_factory.mktemp("api") / "model")


@pytest.fixture
def endpoints() -> Iterator[tuple[str, str]]:
    """The URLs of two servers that give the same answers."""
    with MockEndpoint() as original, MockEndpoint() as pruned:
        yield original.url, pruned.url


@pytest.fixture(scope="module")
def overlay(model: Path) -> Path:
    """The model, pruned to Thai."""
    build_overlay(model, THAI, model.parent / "overlay")
    return model.parent / "overlay"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, half of whose weights are zero."""
    root = tmp_path_factory.mktemp("sparse")
    model = ARCHITECTURES["llama-3.2"].save(root / "model")
    options = SparsifyOptions(method="magnitude", device="cpu")
    sparsify_model(model, root / "sparse", options)
    return root / "sparse"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text to train on."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the weather in Seoul is fine, and in Busan it is not\n" * 100)
    return path


def test_the_api_is_exactly_this_list() -> None:
    assert vllm_kprune.__all__ == API


def test_every_name_is_there_and_listed_by_dir() -> None:
    assert [name for name in API if getattr(vllm_kprune, name, None) is None] == []
    assert set(API) <= set(dir(vllm_kprune))


def test_a_name_that_is_not_there_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'vllm_kprune' has no attribute 'build'"):
        _ = vllm_kprune.build  # type: ignore[attr-defined]


def test_type_checkers_see_the_names_from_the_modules_that_they_are_loaded_from() -> None:
    source = ast.parse(Path(vllm_kprune.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in source.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module.removeprefix("vllm_kprune.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen == vllm_kprune._HOMES
    assert sorted([*seen, "__version__"]) == sorted(API)


def test_importing_the_package_loads_none_of_its_parts() -> None:
    code = (
        "import sys, vllm_kprune; from vllm_kprune import __version__\n"
        "print(*sorted(m for m in sys.modules if m.startswith('vllm_kprune')))\n"
        "print(*(m for m in ('numpy', 'pydantic', 'tokenizers', 'torch', 'vllm')"
        " if m in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["vllm_kprune", ""]


def test_the_public_functions_have_an_example() -> None:
    undocumented = [n for n in FUNCTIONS if ">>>" not in (getattr(vllm_kprune, n).__doc__ or "")]
    assert undocumented == ["load_profile"]  # its tests are in test_profile.py


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "load_profile"])
@pytest.mark.slow
def test_the_example_in_a_docstring_is_right(
    name: str,
    model: Path,
    overlay: Path,
    sparse: Path,
    text: Path,
    endpoints: tuple[str, str],
    tmp_path: Path,
) -> None:
    """`model`, `overlay`, `sparse` and `output` are folders, `text` is a file, `byte_id` has the
    ids of tokens by name, and `original` and `pruned` are the URLs of servers."""
    if name == "sparsify_model":
        model = ARCHITECTURES["llama-3.2"].save(tmp_path / "with layers")
    function = getattr(vllm_kprune, name)
    vocabulary = Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab()
    names: dict[str, Any] = {
        "model": str(model),
        "overlay": str(overlay),
        "sparse": str(sparse),
        "text": str(text),
        "original": endpoints[0],
        "pruned": endpoints[1],
        "output": str(tmp_path / "output"),
        "byte_id": vocabulary,
        "load_spellings": load_spellings,
    }
    home = importlib.import_module(function.__module__)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for test in finder.find(function, name, globs={**vars(home), **names}):
        runner.run(test)
    assert runner.tries > 0
    assert runner.failures == 0


def test_paths_may_be_texts_and_profiles_names(model: Path, tmp_path: Path) -> None:
    manifest = build_overlay(str(model), "original", str(tmp_path / "overlay"))
    assert manifest.profile == load_profile("original")
    export_overlay(str(tmp_path / "overlay"), str(tmp_path / "export"), base=str(model))
    laws = verify_overlay(str(tmp_path / "export"), LINES, base=str(model))
    assert [law.law for law in laws if law.holds] == [1, 2, 3, 4, 5, 6]


def test_progress_is_told_from_0_to_1(model: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    output = tmp_path / "overlay"
    build_overlay(model, THAI, output, progress=lambda step, share: told.append((step, share)))
    assert {"read model", "select tokens", "write overlay", "fingerprint base"} <= dict(told).keys()
    assert all(0 <= share <= 1 for _, share in told)


def test_a_mistake_is_a_kprune_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(KPruneError, match="unknown profile 'enk'"):
        build_overlay(model, "enk", tmp_path / "overlay")
    with pytest.raises(KPruneError, match="does not exist"):
        build_overlay(tmp_path / "nothing", THAI, tmp_path / "overlay")
    with pytest.raises(KPruneError, match=r"no tokenizer\.json"):
        load_spellings(tmp_path)


def test_the_guard_needs_no_server(model: Path) -> None:
    automaton = build_automaton(load_spellings(model), GuardPolicy(languages=("th",)))
    encoder = Tokenizer.from_file(str(model / "tokenizer.json"))
    refused = automaton.refused(0)
    assert refused.shape == (encoder.get_vocab_size(),)
    assert not refused[encoder.token_to_id("a")]  # Latin letters are allowed with any language
    assert refused[encoder.token_to_id("나")]


def test_a_prompt_is_pruned_without_a_server(model: Path) -> None:
    pruner = InputPruner(model, scorer="random")
    text = "the weather in Seoul is fine and the weather in Busan is not " * 4
    pruned = pruner.prune(text, keep=0.5)
    assert 0 < len(pruned.text) < len(text)
    assert pruned.tokens_after < pruned.tokens_before
