"""What a row of the seam table says, and whether a function or class of vLLM agrees with it.

A `Shape` is what can be seen of a function or class: from its source (`sources`) or from the
object itself (`shape_of`). Types are not compared: vLLM changes annotations without changing
behaviour.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Feature", "Place", "Seam", "Shape", "Use", "Without", "shape_of"]


@dataclass(frozen=True)
class Feature:
    """A group of seams that works or is off as a whole.

    A server that asked for an `essential` feature does not start without it; the others cost it a
    warning. `otherwise` says what a user can do without it.
    """

    name: str
    otherwise: str = ""
    essential: bool = True


class Use(StrEnum):
    """How kprune uses a name, which decides what may change about it."""

    WRAPS = "wraps"
    CALLS = "calls"
    OVERRIDES = "overrides"
    READS = "reads"


class Without(StrEnum):
    """What a server that asked for a seam's features does where the seam is missing."""

    OFF = "the feature is off"
    WARNS = "one warning at start"
    QUIET = "no warning"


@dataclass(frozen=True)
class Place:
    """Where a name is, as `module:Owner.name`, and the releases in which it was seen there."""

    module: str
    path: str
    versions: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.module}:{self.path}"

    @property
    def leaf(self) -> str:
        """The last part of the name."""
        return self.path.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Shape:
    """Parameters of a callable (`self` included) and attributes of a class.

    `binding` is "static", "class", "async" or "". `required` are parameters without a default.
    """

    positional: tuple[str, ...] = ()
    keyword_only: tuple[str, ...] = ()
    required: frozenset[str] = frozenset()
    any_positional: bool = False
    any_keyword: bool = False
    binding: str = ""
    attributes: frozenset[str] = frozenset()

    def __str__(self) -> str:
        names = [*self.positional, *(["*args"] if self.any_positional else [])]
        if self.keyword_only:
            names += [*([] if self.any_positional else ["*"]), *self.keyword_only]
        names += ["**kwargs"] if self.any_keyword else []
        return f"{self.binding} ({', '.join(names)})".strip()


@dataclass(frozen=True)
class Seam:
    """One name of vLLM that kprune relies on.

    `signature` lists parameters as Python writes them: those before `*` are passed by position and
    by these names, those after it by name only. A wrap relies on leading parameters and passes the
    others on; an override must have exactly these.
    """

    features: tuple[Feature, ...]
    places: tuple[Place, ...]
    use: Use
    signature: str = ""
    lost: str = ""
    binding: str = ""
    attributes: tuple[str, ...] = ()
    without: Without = Without.OFF

    @property
    def name(self) -> str:
        """`Owner.name`, the same in all of its places."""
        return self.places[0].path

    def __str__(self) -> str:
        return str(self.places[0])

    @property
    def positional(self) -> tuple[str, ...]:
        """Parameters that are passed by position."""
        # "model_or_path, revision, *, fall_back_to_pt": two by position, then one by name.
        return _names(self.signature.partition("*")[0])

    @property
    def keyword(self) -> tuple[str, ...]:
        """Parameters that are passed by name."""
        return _names(self.signature.partition("*")[2])

    @property
    def expected(self) -> str:
        """The signature or the attributes, for a message."""
        if self.use is Use.READS:
            return ", ".join(self.attributes) or "the name"
        # A wrap without parameters would read "(, …)", which the last line mends.
        more = ", …" if self.use is Use.WRAPS else ""
        return f"{self.binding} ({self.signature}{more})".strip().replace("(, …", "(…")

    def objection(self, shape: Shape) -> str | None:
        """What is wrong with a shape; None if kprune can use it."""
        if self.use is Use.READS:
            gone = [name for name in self.attributes if name not in shape.attributes]
            return f"no {', '.join(gone)}" if gone else None
        # Sync or async counts as well: a wrap that awaits a plain function fails at the first
        # request.
        if shape.binding != self.binding or not _FITS[self.use](self, shape):
            return str(shape)
        return None

    def as_row(self) -> dict[str, str]:
        """The row as text, for people."""
        places = [
            f"{place} ({_span(place.versions)})" if len(self.places) > 1 else str(place)
            for place in self.places
        ]
        seen = [version for place in self.places for version in place.versions]
        return {
            "feature": ", ".join(feature.name for feature in self.features),
            "name": " or ".join(places),
            "use": self.use.value,
            "relied on": self.expected,
            "lost without it": self.lost,
            "without it": self.without.value,
            "versions": _span(sorted(seen)),
        }


def shape_of(found: Any) -> Shape:
    """The shape of a function as it stands in its class or module (`inspect.getattr_static`).

    Raises `TypeError` or `ValueError` for what has no signature.
    """
    kind = {staticmethod: "static", classmethod: "class"}.get(type(found), "")
    function = found.__func__ if kind else found
    parameters = inspect.signature(function).parameters.values()
    kinds = inspect.Parameter
    return Shape(
        positional=tuple(
            p.name
            for p in parameters
            if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        ),
        keyword_only=tuple(p.name for p in parameters if p.kind is kinds.KEYWORD_ONLY),
        required=frozenset(
            p.name
            for p in parameters
            if p.default is p.empty and p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
        ),
        any_positional=any(p.kind is kinds.VAR_POSITIONAL for p in parameters),
        any_keyword=any(p.kind is kinds.VAR_KEYWORD for p in parameters),
        binding="async" if _is_async(function) else kind,
    )


def _is_async(function: Any) -> bool:
    # A wrapper of ours is a plain function around the coroutine function, so look below it.
    inner = inspect.unwrap(function)
    return inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)


def _leads(seam: Seam, shape: Shape) -> bool:
    """Do the parameters begin with ours? `*args, **kwargs` takes everything."""
    given = seam.positional
    # Decorated by something that hides the parameters. Those that it does name must still be ours.
    if shape.any_positional and shape.any_keyword:
        return shape.positional == given[: len(shape.positional)]
    return shape.positional[: len(given)] == given


def _accepts(seam: Seam, shape: Shape) -> bool:
    # By name may be passed what is left of the positional ones, too. Nothing else may be required:
    # a new parameter without a default would make our call fail.
    rest = {*shape.positional[len(seam.positional) :], *shape.keyword_only}
    return (
        _leads(seam, shape)
        and (shape.any_keyword or rest.issuperset(seam.keyword))
        and shape.required <= {*seam.positional, *seam.keyword}
    )


def _equals(seam: Seam, shape: Shape) -> bool:
    # Exactly: vLLM calls an override, with whatever its own method takes.
    return (shape.positional, shape.keyword_only) == (seam.positional, seam.keyword)


_FITS: dict[Use, Callable[[Seam, Shape], bool]] = {
    Use.WRAPS: _leads,
    Use.CALLS: _accepts,
    Use.OVERRIDES: _equals,
}


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _span(versions: Any) -> str:
    """`0.31.0 to 0.33.0`, or the one version."""
    return versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
