"""Works the seam table off in a running vLLM: verify, then wrap; what does not fit switches off.

A missing or changed name is noted, and that is all that a server notices which did not ask for
kprune. A server that asked calls `require` at start and gets an error that names the feature, the
vLLM name, what was expected and what was found. Each seam is verified once in a process: when its
module is imported, or by `require` from the source if that comes first. Requests pay nothing.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.compat.imports import when_imported, wrap
from vllm_kprune.serving.compat.log import logger
from vllm_kprune.serving.compat.seam import Feature, Place, Seam, Shape, Use, Without, shape_of
from vllm_kprune.serving.compat.seams import SEAMS
from vllm_kprune.serving.compat.sources import Finding, Sources, installed_sources
from vllm_kprune.serving.compat.version import TESTED, vllm_version

__all__ = ["Around", "Installer", "Wraps", "hook", "installer", "require", "why_off"]

Around = Callable[..., Any]
Wraps = Mapping[Seam, Around]


class Installer:
    """What was found of each seam so far; one for a process, except in tests.

    `sources` opens vLLM's source, `modules` are the imported ones, and `wait` is `when_imported`.
    """

    def __init__(
        self,
        sources: Callable[[], Sources] = installed_sources,
        modules: Mapping[str, ModuleType] = sys.modules,
        wait: Callable[[str, Callable[[ModuleType], None]], None] = when_imported,
    ) -> None:
        self._findings: dict[Seam, Finding] = {}
        self._hooked: set[Seam] = set()
        self._warned: set[Seam] = set()
        self._open_sources = sources
        self._modules = modules
        self._wait = wait
        self._sources: Sources | None = None

    def hook(self, wraps: Wraps) -> None:
        """Put `around(original, …)` around each seam once its module is imported; once each."""
        for seam, around in wraps.items():
            self._when_imported(seam, partial(self._wrap, seam, around))

    def when_usable(self, seams: Iterable[Seam], action: Callable[[], None]) -> None:
        """Call `action()` when the module of the first seam is imported, if all fit."""
        first, *_ = seams = tuple(seams)
        self._when_imported(first, partial(self._act, seams, action))

    def _when_imported(self, seam: Seam, action: Callable[[ModuleType], None]) -> None:
        if seam in self._hooked:
            return
        self._hooked.add(seam)
        # A name that moved between releases waits at all of its places; a release has one of them.
        for module in {place.module for place in seam.places}:
            self._wait(module, action)

    def _wrap(self, seam: Seam, around: Around, module: ModuleType) -> None:
        place = next(one for one in seam.places if one.module == module.__name__)
        if self._note(live_finding(seam, place, module)).problem is None:
            # "EngineArgs.add_cli_args": wrap it in the class, where each caller looks it up. A
            # function that other modules imported by name before this moment stays as it was there.
            owner: Any = module
            for name in place.path.split(".")[:-1]:
                owner = getattr(owner, name)
            wrap(owner, place.leaf, around)

    def _act(self, seams: tuple[Seam, ...], action: Callable[[], None], module: ModuleType) -> None:
        # Of this module only: the other places of a seam belong to other releases.
        findings = [
            self._note(live_finding(seam, place, module))
            for seam in seams
            for place in seam.places
            if place.module == module.__name__
        ]
        if any(one.problem for one in findings if one.seam.without is Without.OFF):
            return
        try:
            action()
        except Exception as error:  # in the middle of vLLM's own import: this feature alone is off
            self._note(Finding(seams[0], seams[0].places[0], f"{type(error).__name__}: {error}"))

    def _note(self, finding: Finding) -> Finding:
        self._findings[finding.seam] = finding
        if finding.problem:
            logger.debug("kprune: %s", finding.message)
        return finding

    def problems(self, feature: Feature) -> Iterator[Finding]:
        """The seams of a feature that this vLLM does not have as expected."""
        for seam in SEAMS:
            if feature in seam.features and self._look(seam).problem is not None:
                yield self._findings[seam]

    def _look(self, seam: Seam) -> Finding:
        if seam not in self._findings:
            self._findings[seam] = self._look_live(seam) or self._look_in_source(seam)
        return self._findings[seam]

    def _look_live(self, seam: Seam) -> Finding | None:
        """From imported modules, which is faster; only good news counts."""
        for place in seam.places:
            if module := self._modules.get(place.module):
                finding = live_finding(seam, place, module)
                if finding.problem is None:
                    return finding
        return None

    def _look_in_source(self, seam: Seam) -> Finding:
        self._sources = self._sources or self._open_sources()
        # Bad news of an imported module may be that of another release's place, or of a module that
        # is still being imported. The source decides.
        return self._sources.check(seam)

    def why_off(self, feature: Feature) -> str | None:
        """Why a feature is off in this vLLM; None if it is not."""
        for finding in self.problems(feature):
            if finding.seam.without is Without.OFF:
                return f"vLLM {vllm_version()} does not fit: {finding.message}"
        return None

    def require(self, features: Iterable[Feature]) -> None:
        """Raise `KPruneError` for an essential feature that is off; warn once of what is less."""
        for feature in features:
            reason = self.why_off(feature)
            if reason and feature.essential:
                raise KPruneError(
                    f"{feature.name}: {reason}; install vLLM {TESTED}, or {feature.otherwise}"
                )
            for finding in self.problems(feature):
                if finding.seam.without is not Without.QUIET:
                    self._warn(feature, finding)

    def _warn(self, feature: Feature, finding: Finding) -> None:
        seam = finding.seam
        if seam not in self._warned:
            self._warned.add(seam)
            message = "kprune: %s: with vLLM %s you lose %s (%s)"
            logger.warning(message, feature.name, vllm_version(), seam.lost, finding.message)


def live_finding(seam: Seam, place: Place, module: ModuleType) -> Finding:
    """How a seam looks in an imported module."""
    found: Any = module
    path = place.path.split(".")
    try:
        for name in path[:-1]:
            found = getattr(found, name)
        # Static: `static` and `class` are part of what a seam expects, and `getattr` would hide
        # them.
        found = inspect.getattr_static(found, path[-1])
        if found is getattr(object, path[-1], None):  # an inherited default, no name of vLLM
            return Finding(seam, place, f"no {place.path}")
        shape = _attributes_of(found) if seam.use is Use.READS else shape_of(found)
    except AttributeError:
        gone = next((name for name in _prefixes(path) if not _has(module, name)), place.path)
        return Finding(seam, place, f"no {gone}")
    except (TypeError, ValueError):
        return Finding(seam, place, "something that is no function")
    return Finding(seam, place, seam.objection(shape))


def _prefixes(path: list[str]) -> Iterator[str]:
    return (".".join(path[: n + 1]) for n in range(len(path)))


def _has(module: ModuleType, path: str) -> bool:
    found: Any = module
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def _attributes_of(found: Any) -> Shape:
    classes = found.__mro__ if isinstance(found, type) else ()
    # A dataclass field without a default is no attribute of its class, so `dir` does not have it.
    annotated = (name for one in classes for name in vars(one).get("__annotations__", ()))
    return Shape(attributes=frozenset([*dir(found), *annotated]))


# One for the process: its findings are what `require` and `why_off` answer from.
installer = Installer()
hook = installer.hook
require = installer.require
why_off = installer.why_off
