"""The order of imports, and what may be imported where; read from the source."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vllm_kprune

PACKAGE = Path(vllm_kprune.__file__).parent
RANKS = (
    "errors",
    "signals",
    "options",
    "progress",
    "arrays",
    "storage",
    "profile",
    "tokenizer",
    "vocabulary",
    "checkpoint",
    "guard",
    "prompt",
    "sparsify",
    "analyze",
    "heal",
    "compare",
    "demo",
    "serving",
    "cli",
)
# The rooms and modules of compare/, from the bottom up.
COMPARE_RANKS = (
    *("measurements", "margins", "options", "endpoint", "statistics", "report"),
    *(
        "journal",
        "run",
        "asking",
        "suites",
        "settings",
        "connect",
        "conclude",
        "conditions",
        "gate",
    ),
    *("ci_files", "planning", "rejudge", "comparing"),
)
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(module: str) -> str:
    """The ranked part that a module belongs to; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


NAMES = {module_name(path): path for path in FILES}
COMPAT = PACKAGE / "serving" / "compat"
SERVING = [path for path in FILES if part(module_name(path)) == "serving"]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, str | None, int]]:
    """(module, imported name or None, line) of every import, also those inside functions."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module
            yield from ((node.module, alias.name, node.lineno) for alias in node.names)


def own_imports(path: Path) -> Iterator[tuple[str, int]]:
    """(kprune module, line) of every import of our own; `from package import module` resolved."""
    for module, name, line in imports(path):
        if module.split(".")[0] == "vllm_kprune":
            full = f"{module}.{name}"
            yield (full if full in NAMES else module), line


def by_name(path: Path) -> str:
    return module_name(path)


def test_every_part_of_the_package_has_a_rank() -> None:
    assert {part(name) for name in NAMES} - {""} <= set(RANKS)


@pytest.mark.parametrize("path", [f for f in FILES if part(module_name(f))], ids=by_name)
def test_a_module_imports_only_from_lower_ranks_or_its_own_part(path: Path) -> None:
    own = part(module_name(path))
    for module, line in own_imports(path):
        other = part(module)
        allowed = other in ("", own) or RANKS.index(other) < RANKS.index(own)
        assert allowed, f"{path}:{line}: {own} must not import {other}"


def test_the_package_itself_imports_its_parts_for_type_checkers_only() -> None:
    """At run time it loads them when a name is first used (`tests/test_python_api.py`)."""
    path = PACKAGE / "__init__.py"
    blocks = [node for node in tree(path).body if isinstance(node, ast.If)]
    assert [ast.unparse(block.test) for block in blocks] == ["TYPE_CHECKING"]
    seen_by_checkers = {node.lineno for node in ast.walk(blocks[0]) if hasattr(node, "lineno")}
    assert {line for _, line in own_imports(path)} <= seen_by_checkers


def test_there_is_no_import_cycle() -> None:
    graph = {
        name: {target for target, _ in own_imports(path)}
        for name, path in NAMES.items()
        if part(name)  # the package itself imports nothing at run time
    }
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", sorted((PACKAGE / "compare").rglob("*.py")), ids=by_name)
def test_the_rooms_of_compare_import_in_one_direction(path: Path) -> None:
    def room(module: str) -> str:
        return ".".join(module.split(".")[2:3])

    own = room(module_name(path))
    if not own:  # the package itself
        assert list(own_imports(path)) == []
        return
    for module, line in own_imports(path):
        if part(module) == "compare" and room(module) != own:
            lower = COMPARE_RANKS.index(room(module)) < COMPARE_RANKS.index(own)
            assert lower, f"{path}:{line}: {own} must not import {room(module)}"


@pytest.mark.parametrize("path", [f for f in FILES if f not in SERVING], ids=by_name)
def test_only_serving_imports_vllm(path: Path) -> None:
    found = [line for module, _, line in imports(path) if module.split(".")[0] == "vllm"]
    assert not found, f"{path}: imports vllm in lines {found}"


@pytest.mark.parametrize("path", [f for f in SERVING if COMPAT not in f.parents], ids=by_name)
def test_private_vllm_names_are_in_compat_only(path: Path) -> None:
    """No private import from vllm, and no `x._name` except on `self`, `cls` or our own modules."""
    for module, name, line in imports(path):
        if module.split(".")[0] == "vllm":
            private = [word for word in f"{module}.{name or ''}".split(".") if word[:1] == "_"]
            assert not private, f"{path}:{line}: {private} belongs in serving/compat"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            public = node.attr.startswith("__") or ast.unparse(node.value) in (
                "self",
                "cls",
                "parser",  # argparse's own
            )
            assert public, f"{path}:{node.lineno}: {node.attr} belongs in serving/compat"


def loads(modules: list[str], *forbidden: str) -> set[str]:
    """Which of `forbidden` a fresh interpreter has loaded after importing `modules`."""
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += f"print(*[m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
def test_importing_everything_outside_serving_does_not_import_vllm() -> None:
    outside = [name for name in NAMES if part(name) != "serving" and not name.endswith("__main__")]
    assert loads(outside, "vllm") == set()


def test_importing_tokenizers_vocabularies_and_profiles_does_not_import_torch() -> None:
    light = [name for name in NAMES if part(name) in ("", *RANKS[: RANKS.index("vocabulary") + 1])]
    assert loads(light, "torch", "transformers") == set()


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_a_module_with_public_names_lists_them(path: Path) -> None:
    public = {
        node.name
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert all_of(path) or not public, f"{path}: no __all__ for {sorted(public)}"


@pytest.mark.parametrize("path", [f for f in FILES if f not in SERVING], ids=by_name)
def test_every_listed_name_is_there(path: Path) -> None:
    module = importlib.import_module(module_name(path))
    assert [name for name in all_of(path) if not hasattr(module, name)] == []


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_listed_names_are_sorted_and_unique(path: Path) -> None:
    listed = all_of(path)
    assert listed == sorted(set(listed), key=_isort_style)


def all_of(path: Path) -> list[str]:
    """The module's `__all__`, read from its source."""
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _isort_style(name: str) -> tuple[int, str]:
    """Constants, classes, functions: the order in which ruff (RUF022) sorts `__all__`."""
    if name.isupper():
        return 0, name
    return (1, name) if name.lstrip("_")[:1].isupper() else (2, name)
