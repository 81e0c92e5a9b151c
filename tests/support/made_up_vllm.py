"""A vLLM made up from the seam table: every listed name with the listed parameters, nothing else.

`source_files` writes it as Python files; with a `Change`, one name is gone or has other parameters.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Literal

from vllm_kprune.serving.compat.seam import Place, Seam, Use
from vllm_kprune.serving.compat.seams import SEAMS

Kind = Literal["gone", "parameters", "binding"]


@dataclass(frozen=True)
class Change:
    """What is different about one seam."""

    seam: Seam
    kind: Kind

    def __str__(self) -> str:
        return f"{self.seam}-{self.kind}"

    @property
    def affected(self) -> set[Seam]:
        """The seams that are not as expected then: members go with their class."""
        if self.kind != "gone":
            return {self.seam}
        return {one for one in SEAMS if _is_within(one.places[0], self.seam.places[0])}


def changes() -> Iterator[Change]:
    """Every seam with its name gone, and with its parameters, binding or attributes changed."""
    for seam in SEAMS:
        yield Change(seam, "gone")
        if seam.use is not Use.READS:
            yield Change(seam, "binding")
        if seam.signature or seam.use is Use.CALLS or seam.attributes:
            yield Change(seam, "parameters")


def source_files(change: Change | None = None, *, place: int = 0) -> dict[str, str]:
    """Path -> text. Seams with several places are in the first, or the last for `place` -1."""
    modules: dict[str, _Name] = {}
    for seam in SEAMS:
        where = seam.places[place]
        node = modules.setdefault(where.module, _Name())
        for name in where.path.split("."):
            node = node.members.setdefault(name, _Name())
        node.seams.append(seam)
    if change:
        where = change.seam.places[place]
        _apply(change, modules[where.module], where)
    files = {
        f"{module.replace('.', '/')}.py": "\n".join(_members(node, 0)) + "\n"
        for module, node in modules.items()
    }
    for module in modules:  # the packages above
        parents = module.split(".")[:-1]
        for depth in range(len(parents)):
            path = "/".join(parents[: depth + 1])
            plain = files.pop(f"{path}.py", None)
            files[f"{path}/__init__.py"] = plain or files.get(f"{path}/__init__.py", "")
    return files


def made_up_modules(files: Mapping[str, str]) -> dict[str, ModuleType]:
    """The files as modules, which are not in `sys.modules`."""
    made = {}
    for path, text in files.items():
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        made[name] = ModuleType(name)
        exec(compile(text, path, "exec"), vars(made[name]))
    return made


@dataclass
class _Name:
    members: dict[str, "_Name"] = field(default_factory=dict)
    seams: list[Seam] = field(default_factory=list)
    change: Change | None = None


def _apply(change: Change, module: _Name, place: Place) -> None:
    *owners, leaf = place.path.split(".")
    node = module
    for owner in owners:
        node = node.members[owner]
    if change.kind == "gone":
        node.members[f"{leaf}_elsewhere"] = node.members.pop(leaf)
    else:
        node.members[leaf].change = change


def _members(node: _Name, depth: int) -> Iterator[str]:
    for name, member in node.members.items():
        for line in _lines(name, member):
            yield "    " * depth + line


def _lines(name: str, node: _Name) -> Iterator[str]:
    called = next((seam for seam in node.seams if seam.use is not Use.READS), None)
    is_class = bool(node.members) or name[0].isupper() or any(s.attributes for s in node.seams)
    if not is_class:
        yield from _function(name, called, node.change) if called else [f"{name}: object = None"]
        return
    yield f"class {name}:"
    yield "    pass"
    for seam in node.seams:
        names = seam.attributes
        if node.change and node.change.seam == seam and node.change.kind == "parameters":
            names = names[:-1]
        yield from (f"    {attribute}: object = None" for attribute in names)
    if called and not any(
        child.seams for child in node.members.values() if "__init__" in child.members
    ):
        yield from ("    " + line for line in _constructor(called, node.change))
    yield from _members(node, 1)


def _constructor(seam: Seam, change: Change | None) -> Iterator[str]:
    if change and change.kind == "binding":  # a class that nobody can call like this
        return _function("__init__", seam, None, first="self, more, ")
    return _function("__init__", seam, change, first="self, ")


def _function(name: str, seam: Seam, change: Change | None, first: str = "") -> Iterator[str]:
    binding, signature = seam.binding if not first else "", first + seam.signature
    if change and change.kind == "parameters":
        signature = first + "unexpected, *, other"
    if change and change.kind == "binding":
        binding = "async" if binding != "async" else ""
    if binding in ("static", "class"):
        yield f"@{binding}method"
    yield f"{'async ' if binding == 'async' else ''}def {name}({signature}): pass"


def _is_within(inner: Place, outer: Place) -> bool:
    return inner.module == outer.module and f"{inner.path}.".startswith(f"{outer.path}.")
