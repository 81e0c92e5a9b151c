"""What a vLLM offers, read from its Python files: nothing of it is imported or run.

Serves two ends: `packaging/check_vllm.py` reads wheels of versions that are not installed, and a
server that asked for kprune checks at start what it has not imported yet. Follows re-exports and
base classes inside vLLM. Names that are made at run time (`setattr`, `__getattr__`) are not seen.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from vllm_kprune.serving.compat.seam import Place, Seam, Shape

__all__ = ["Finding", "Sources", "installed_sources"]

_ROOT = "vllm"


@dataclass(frozen=True)
class Finding:
    """How a seam was found at `place`; `problem` is None if it is as kprune expects it."""

    seam: Seam
    place: Place
    problem: str | None = None

    @property
    def message(self) -> str:
        """The vLLM name, what was expected and what was found."""
        return f"{self.place}: expected {self.seam.expected}, found {self.problem}"


@dataclass(frozen=True)
class _Found:
    """A definition, or None where an import leads out of vLLM, and the module that it is in."""

    node: ast.stmt | None
    module: str


class Sources:
    """The Python files of one vLLM; `read` gives a file's text by its path, or None."""

    def __init__(self, read: Callable[[str], str | None]) -> None:
        self._read = read
        self._modules: dict[str, list[ast.stmt] | None] = {}
        self._packages: set[str] = set()

    def check(self, seam: Seam) -> Finding:
        """Is the seam in any of its places, with the shape that kprune relies on?"""
        findings = [self._check_at(seam, place) for place in seam.places]
        # If a name moved, complain about the place that this vLLM has, not about a module of
        # another release. Of several, one without a problem is enough (`False` sorts first).
        there = [one for one in findings if self._body(one.place.module) is not None]
        return min(there or findings, key=lambda one: one.problem is not None)

    def _check_at(self, seam: Seam, place: Place) -> Finding:
        found = self.shape(place)
        return Finding(seam, place, found if isinstance(found, str) else seam.objection(found))

    def shape(self, place: Place) -> Shape | str:
        """The shape of what is there, or a text that says what is missing."""
        if self._body(place.module) is None:
            return "no such module"
        owner, *members = place.path.split(".")
        found = self._in_module(place.module, owner)
        # One round more than there are members, so that the last look-up is checked for None as
        # well.
        for number, member in enumerate([*members, ""]):
            if found is None:
                return f"no {'.'.join([owner, *members][: number + 1])}"
            if member:
                found = self._in_class(found, member)
        assert found
        return self._shape(found)

    def _body(self, module: str) -> list[ast.stmt] | None:
        if module not in self._modules:
            path = module.replace(".", "/")
            text = self._read(f"{path}.py")
            if text is None and (text := self._read(f"{path}/__init__.py")) is not None:
                self._packages.add(module)
            self._modules[module] = None if text is None else list(_flat(ast.parse(text).body))
        return self._modules[module]

    def _in_module(self, module: str, name: str) -> _Found | None:
        # Backwards: of several definitions of a name, the last one holds.
        for node in reversed(self._body(module) or []):
            if name in _defined(node):
                return _Found(node, module)
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self._imported(module, node, alias.name)
        return None

    def _imported(self, module: str, node: ast.ImportFrom, name: str) -> _Found | None:
        source = node.module or ""
        if node.level:
            # In `vllm/x/y.py` one dot is `vllm.x`: cut one part. In `vllm/x/__init__.py` one dot is
            # `vllm.x` itself: cut none, and `-0 or None` is the slice that cuts none.
            up = node.level - (module in self._packages)
            parts = module.split(".")[: -up or None]
            source = ".".join([*parts, *([source] if source else [])])
        # torch and others are not read: the name is taken to be there, with no shape to compare.
        if source.split(".")[0] != _ROOT or self._body(source) is None:
            return _Found(None, source)
        return self._in_module(source, name)

    def _in_class(self, owner: _Found, name: str) -> _Found | None:
        """A member of a class, or of its bases inside vLLM."""
        if not isinstance(owner.node, ast.ClassDef):
            return None
        for node in reversed(list(_flat(owner.node.body))):
            if name in _defined(node):
                return replace(owner, node=node)
        bases = (self._in_class(base, name) for base in self._bases(owner.node, owner.module))
        return next((found for found in bases if found), None)

    def _bases(self, node: ast.ClassDef, module: str) -> Iterator[_Found]:
        for base in node.bases:
            # `class A(Base[T])` is a subscript around `Base`. Dotted bases (`module.Base`) are not
            # followed.
            base = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(base, ast.Name) and (found := self._in_module(module, base.id)):
                yield found

    def _shape(self, found: _Found) -> Shape:
        node = found.node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return _function_shape(node)
        if not isinstance(node, ast.ClassDef):
            return Shape()
        attributes = frozenset(self._attributes(found))
        init = self._in_class(found, "__init__")
        if init and isinstance(init.node, ast.FunctionDef | ast.AsyncFunctionDef):
            shape = _function_shape(init.node)
            return replace(
                shape,
                # Called without `self`: that is what the table writes for a class.
                positional=shape.positional[1:],
                required=shape.required - {shape.positional[0]},
                attributes=attributes,
            )
        fields = list(_fields(node))
        return Shape(
            positional=tuple(name for name, _ in fields),
            required=frozenset(name for name, required in fields if required),
            attributes=attributes,
        )

    def _attributes(self, found: _Found) -> Iterator[str]:
        assert isinstance(found.node, ast.ClassDef)
        for node in ast.walk(found.node):
            if isinstance(node, ast.stmt):
                yield from _defined(node)
            # `self.name = …` in a method. Any `x.name = …` counts: one attribute too many does no
            # harm.
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.attr
        for base in self._bases(found.node, found.module):
            if isinstance(base.node, ast.ClassDef):
                yield from self._attributes(base)


def installed_sources() -> Sources:
    """The files of the vLLM that this process imports."""
    spec = find_spec(_ROOT)
    folders = list(spec.submodule_search_locations or ()) if spec else []

    def read(path: str) -> str | None:
        for folder in folders:
            file = Path(folder).parent / path
            if file.is_file():
                return file.read_text(encoding="utf-8")
        return None

    return Sources(read)


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body, with those below `if`, `try` and `with` in their place."""
    for node in body:
        yield node
        # Not `handlers`: what an `except ImportError` defines instead must not hide the usual name.
        for name in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _flat(getattr(node, name, []))


def _defined(node: ast.stmt) -> Iterator[str]:
    """The names that a statement defines itself; imports are followed elsewhere."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    """A dataclass's fields, and whether each must be given."""
    if not any("dataclass" in ast.unparse(one) for one in node.decorator_list):
        return
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            yield field.target.id, field.value is None


def _function_shape(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Shape:
    given = node.args
    positional = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    by_name = [argument.arg for argument in given.kwonlyargs]
    # `defaults` belong to the last positional parameters; `kw_defaults` has None for "no default".
    without_default = positional[: len(positional) - len(given.defaults)]
    without_default += [
        name for name, default in zip(by_name, given.kw_defaults, strict=True) if default is None
    ]
    decorators = {ast.unparse(one) for one in node.decorator_list}
    static = {"staticmethod": "static", "classmethod": "class"}
    kinds = [kind for name, kind in static.items() if name in decorators]
    return Shape(
        positional=tuple(positional),
        keyword_only=tuple(by_name),
        required=frozenset(without_default),
        any_positional=given.vararg is not None,
        any_keyword=given.kwarg is not None,
        binding="async" if isinstance(node, ast.AsyncFunctionDef) else "".join(kinds),
    )
