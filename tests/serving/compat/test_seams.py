"""The table of vLLM names: complete, right for this vLLM, and what becomes of each name's loss."""

import ast
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.made_up_vllm import Change, changes, made_up_modules, source_files

import vllm_kprune
from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.compat import features, seams_engine
from vllm_kprune.serving.compat import installer as installer_module
from vllm_kprune.serving.compat.features import FEATURES, VERSIONS
from vllm_kprune.serving.compat.imports import is_wrapped
from vllm_kprune.serving.compat.installer import Installer
from vllm_kprune.serving.compat.log import logger
from vllm_kprune.serving.compat.seam import Feature, Seam, Use, Without
from vllm_kprune.serving.compat.seams import SEAMS, seam_rows
from vllm_kprune.serving.compat.sources import Sources, installed_sources
from vllm_kprune.serving.plugin import all_wraps

SERVING = Path(vllm_kprune.__file__).parent / "serving"
FILES = sorted(SERVING.rglob("*.py"))
CHANGES = list(changes())


def imports_from_vllm(path: Path) -> Iterator[str]:
    """`module:name` of every import from vLLM in a file, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            yield from (f"{node.module}:{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            yield from (f"{name}:" for name in names if name.split(".")[0] == "vllm")


def is_listed(name: str) -> bool:
    """Is an imported name in the table, or the owner or module of one that is?"""
    places = [place for seam in SEAMS for place in seam.places]
    return name.replace(":", ".") in {place.module for place in places} or any(
        f"{place}.".startswith(f"{name}.") for place in places
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SERVING)))
def test_every_import_from_vllm_is_in_the_table(path: Path) -> None:
    assert [name for name in imports_from_vllm(path) if not is_listed(name)] == []


@pytest.mark.parametrize("name", ["vllm:LLM", "vllm.exceptions:VLLM", "vllm.exceptions:"])
def test_a_name_that_is_not_in_the_table_is_noticed(name: str) -> None:
    assert not is_listed(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SERVING)))
def test_modules_of_vllm_are_named_in_the_table_alone(path: Path) -> None:
    """Not as strings elsewhere: an import hook for one would escape the table."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {ast.get_docstring(n, clean=False) for n in ast.walk(tree) if isinstance(n, _DOCUMENTED)}
    modules = {place.module for seam in SEAMS for place in seam.places}
    found = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in modules and node.value not in docs
    }
    assert path.name.startswith("seams_") or not found


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_what_is_listed_as_wrapped_is_what_register_wraps() -> None:
    assert set(all_wraps()) == {seam for seam in SEAMS if seam.use is Use.WRAPS}


def test_no_seam_is_listed_twice_and_each_says_what_is_lost() -> None:
    keys = [(str(seam), seam.use, seam.attributes) for seam in SEAMS]
    assert len(keys) == len(set(keys))
    assert all(seam.lost and seam.features for seam in SEAMS)
    assert {feature for seam in SEAMS for feature in seam.features} == set(FEATURES)
    assert all(feature.otherwise for feature in FEATURES if feature.essential)


@pytest.mark.parametrize("seam", SEAMS, ids=str)
def test_a_seam_that_a_release_lacks_is_one_that_servers_start_without(seam: Seam) -> None:
    seen = [version for place in seam.places for version in place.versions]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(VERSIONS)
    assert set(seen) == set(VERSIONS) or seam.without is not Without.OFF


def test_the_rows_for_the_documentation_have_all_columns() -> None:
    rows = list(seam_rows())
    assert len(rows) == len(SEAMS)
    columns = ["feature", "name", "use", "relied on", "lost without it", "without it", "versions"]
    assert all(list(row) == columns and all(row.values()) for row in rows)
    (offline,) = (row for row in rows if "_add_chat_requests" in row["name"])
    assert "vllm.entrypoints.offline_utils:" in offline["name"]
    assert offline["versions"] == "0.31.0 to 0.33.0"
    (beams,) = (row for row in rows if "resolve_watermarking" in row["name"])
    assert (beams["versions"], beams["without it"]) == ("0.32.0 to 0.33.0", "one warning at start")


@pytest.mark.slow
def test_the_installed_vllm_has_every_seam(vllm_ready: None) -> None:
    sources = installed_sources()
    assert [f.message for seam in SEAMS if (f := sources.check(seam)).problem] == []


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Register with a made-up vLLM: the installer, and the modules that it wrapped."""
    monkeypatch.setattr(installer_module, "vllm_version", lambda: "0.99")

    def register(change: Change | None = None, place: int = 0) -> Any:
        files = source_files(change, place=place)
        modules = made_up_modules(files)

        def wait(name: str, action: Callable[[Any], None]) -> None:
            if name in modules:
                action(modules[name])

        installer = Installer(lambda: Sources(files.get), modules, wait)
        installer.hook(all_wraps())
        return installer, modules

    return register


def resolve(modules: dict[str, Any], seam: Seam) -> list[Any]:
    """What is at the places of a seam."""
    found = []
    for place in seam.places:
        owner = modules.get(place.module)
        for name in place.path.split("."):
            owner = getattr(owner, name, None)
        found += [owner] if owner else []
    return found


@pytest.mark.parametrize("place", [0, -1])
def test_with_every_name_in_place_everything_is_wrapped_and_on(install: Any, place: int) -> None:
    installer, modules = install(place=place)
    installer.require(FEATURES)
    assert [feature.name for feature in FEATURES if installer.why_off(feature)] == []
    for seam in all_wraps():
        (function,) = resolve(modules, seam)
        assert is_wrapped(function), seam


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_changed_name_switches_off_its_own_features_alone(install: Any, change: Change) -> None:
    installer, modules = install(change)
    off = {feature for feature in FEATURES if installer.why_off(feature)}
    lost = {seam for seam in change.affected if seam.without is Without.OFF}
    assert off == {feature for seam in lost for feature in seam.features}
    for seam in set(all_wraps()) - change.affected:
        assert all(map(is_wrapped, resolve(modules, seam))), seam
    for seam in change.affected:
        assert not any(map(is_wrapped, resolve(modules, seam)))


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_check_of_the_source_finds_that_change_and_no_other(change: Change) -> None:
    sources = Sources(source_files(change).get)
    assert {seam for seam in SEAMS if sources.check(seam).problem} == change.affected


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_who_asked_is_told_the_feature_the_name_and_what_to_do(
    install: Any, change: Change, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    installer, _ = install(change)
    for feature in change.seam.features:
        caplog.clear()
        if installer.why_off(feature) and feature.essential:
            with pytest.raises(KPruneError) as error:
                installer.require([feature])
            told = str(error.value)
            assert told.startswith(f"{feature.name}: vLLM 0.99 ")
            assert told.endswith(f"install vLLM >=0.31,<0.34, or {feature.otherwise}")
            assert not caplog.records
        else:
            for _ in range(2):
                installer.require([feature])
            told = caplog.text
            assert len(caplog.records) <= len(change.affected)
            quiet = all(seam.without is Without.QUIET for seam in change.affected)
            assert quiet or feature is not change.seam.features[0] or told
        assert not told or any(f"{seam}: expected " in told for seam in change.affected)


@pytest.mark.slow
def test_who_did_not_ask_hears_nothing(
    install: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger=logger.name)
    for change in CHANGES:
        installer, _ = install(change)
        installer.require([])
    assert not caplog.records


def test_a_loader_that_would_not_fit_is_not_imported(install: Any) -> None:
    imported: list[str] = []
    change = Change(seams_engine.ALL_WEIGHTS, "parameters")
    for one in (None, change):
        installer, _ = install(one)
        installer.when_usable(seams_engine.LOADER_SEAMS, lambda one=one: imported.append(str(one)))
    assert imported == ["None"]


def test_a_loader_that_fails_to_import_switches_off_the_pruned_vocabulary_alone(
    install: Any,
) -> None:
    def fail() -> None:
        raise AttributeError("register_model_loader is not what it was")

    installer, _ = install()
    installer.when_usable(seams_engine.LOADER_SEAMS, fail)
    off: list[Feature] = [feature for feature in FEATURES if installer.why_off(feature)]
    assert off == [features.VOCABULARY]
    assert "is not what it was" in installer.why_off(features.VOCABULARY)
