"""No two public classes or type aliases of the package share a name."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import vllm_kprune

PACKAGE = Path(vllm_kprune.__file__).parent
ROOMS = sorted(
    {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
)
# Name -> why it stands for the same thing wherever it is defined.
SAME_THING: dict[str, str] = {}


def type_names(path: Path) -> list[str]:
    """The public classes and type aliases that a module defines at its top level.

    An alias is declared as `TypeAlias`, or is a capitalised name for a subscripted type.
    """
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
            found.append(ast.unparse(node.target))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, is_type = node.targets[0].id, isinstance(node.value, ast.Subscript | ast.BinOp)
            if is_type and name[0].isupper() and not name.isupper():
                found.append(name)
    return [name for name in found if not name.startswith("_")]


@cache
def homes() -> dict[str, list[str]]:
    """Name -> the modules that define it."""
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for name in type_names(path):
            found[name].append(module)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_name_stands_for_one_thing(room: str) -> None:
    shared = {
        name: modules
        for name, modules in homes().items()
        if len(modules) > 1
        and any(module.split(".")[0] == room for module in modules)
        and name not in SAME_THING
    }
    assert shared == {}


def test_the_package_defines_many_names() -> None:
    """So the test above looks at something."""
    names = homes()
    assert {"Profile", "Progress", "Floats", "Manifest", "TokenMask"} <= names.keys()
    assert len(names) > 100
