"""Overlays in the cache: built once, safe to share, and nothing is read twice."""

import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.counted_reads import count_reads, hashed_in
from support.tiny_folders import contents, edit, save_model

from vllm_kprune.checkpoint import cached as cached_module
from vllm_kprune.checkpoint.cached import cached_overlay
from vllm_kprune.checkpoint.head import head_rows
from vllm_kprune.checkpoint.manifest import MANIFEST_NAME, Manifest, load_manifest
from vllm_kprune.checkpoint.overlay import build_overlay, write_overlay
from vllm_kprune.checkpoint.plan import TokenizerPlan
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Profile

THAI = Profile(name="thai", languages=("th",), code=False)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Base folders that overlays were written for, in order."""
    built: list[str] = []

    def write(plan: TokenizerPlan, folder: Path, *options: Any) -> Manifest:
        built.append(plan.base.folder.name)
        return write_overlay(plan, folder, *options)

    monkeypatch.setattr(cached_module, "write_overlay", write)
    return built


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the base is opened, and each file hashed."""
    return count_reads(monkeypatch)


def folder_of(model: Path, profile: Profile = THAI) -> Path:
    return cached_overlay(model, profile).folder


def test_the_first_build_opens_the_base_once_and_reads_each_file_once(
    tmp_path: Path, cache: Path, reads: Counter[str]
) -> None:
    overlay = cached_overlay(save_model(tmp_path / "model"), THAI)
    assert hashed_in(reads, "model") == dict.fromkeys(overlay.manifest.base.files, 1)
    assert (reads["tokenizer"], reads["header"]) == (1, 1)


@pytest.mark.parametrize("touched", [[], ["model.safetensors"]])
def test_a_later_start_opens_the_base_once_and_hashes_only_files_that_were_touched(
    tmp_path: Path, cache: Path, reads: Counter[str], touched: list[str]
) -> None:
    model = save_model(tmp_path / "model")
    folder_of(model)
    reads.clear()
    for name in touched:
        os.utime(model / name, ns=(1, 1))
    folder_of(model)
    assert hashed_in(reads, "model") == dict.fromkeys(touched, 1)
    assert (reads["tokenizer"], reads["header"]) == (1, 1)


def test_what_is_returned_fits_together(tmp_path: Path, cache: Path) -> None:
    model = save_model(tmp_path / "model")
    overlay = cached_overlay(model, THAI)
    assert overlay.manifest == load_manifest(overlay.folder)
    assert overlay.base.folder == overlay.manifest.check_base() == model
    assert cached_overlay(overlay.folder, THAI).folder == overlay.folder


def test_its_files_are_those_that_build_makes(tmp_path: Path, cache: Path) -> None:
    model = save_model(tmp_path / "model")
    made, cached = build_overlay(model, THAI, tmp_path / "built"), cached_overlay(model, THAI)
    assert made.files == cached.manifest.files and made.files
    assert made.kept_ids == cached.manifest.kept_ids
    cached.manifest.check_files(cached.folder)


def test_a_cached_overlay_is_built_once_for_the_same_content(
    tmp_path: Path, cache: Path, builds: list[str]
) -> None:
    model = save_model(tmp_path / "model")
    folder = folder_of(model)
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert folder_of(model) == folder
    assert folder.is_relative_to(cache)
    assert builds == ["model"]
    load_manifest(folder).check_base()


@pytest.mark.slow
def test_another_profile_or_changed_content_gives_another_folder(
    tmp_path: Path, cache: Path, builds: list[str]
) -> None:
    model = save_model(tmp_path / "model")
    first = folder_of(model)
    second = folder_of(model, replace(THAI, drop_unused=False))
    edit(model / "generation_config.json", max_new_tokens=21)
    third = folder_of(model)
    assert len({first, second, third}) == len(builds) == 3


def test_a_model_that_was_moved_is_found_at_its_new_place(tmp_path: Path, cache: Path) -> None:
    model = save_model(tmp_path / "one" / "model")
    folder_of(model)
    (tmp_path / "two").mkdir()
    moved = model.rename(tmp_path / "two" / "model")
    assert load_manifest(folder_of(moved)).check_base() == moved


def _truncate(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def _edit_manifest(folder: Path) -> None:
    edit(folder / MANIFEST_NAME, family="other")


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _edit_manifest,
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / MANIFEST_NAME).unlink(),
        lambda folder: (folder / MANIFEST_NAME).write_bytes(b"\0"),
    ],
)
@pytest.mark.slow
def test_a_damaged_cache_entry_is_built_again(
    tmp_path: Path, cache: Path, builds: list[str], damage: Any
) -> None:
    model = save_model(tmp_path / "model")
    folder = folder_of(model)
    before = contents(folder)
    damage(folder)
    assert folder_of(model) == folder
    assert contents(folder) == before
    assert len(builds) == 2


def test_two_that_ask_at_once_build_once(tmp_path: Path, cache: Path, builds: list[str]) -> None:
    model = save_model(tmp_path / "model")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(folder_of(model))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(builds) == len(set(found)) == 1


@pytest.mark.slow
def test_two_processes_that_ask_at_once_get_the_same_overlay(tmp_path: Path, cache: Path) -> None:
    model = save_model(tmp_path / "model")
    program = (
        "import sys; from vllm_kprune.profile import Profile\n"
        "from vllm_kprune.checkpoint.cached import cached_overlay\n"
        "profile = Profile(name='th', languages=('th',), code=False)\n"
        "folder = cached_overlay(sys.argv[1], profile).folder\n"
        "print(folder, (folder / 'kprune.json').stat().st_ino)"
    )
    command = [sys.executable, "-c", program, str(model)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert answers[0] == answers[1] != ""


@pytest.mark.parametrize("place", ["cache", "cache/below"])
def test_a_cache_that_cannot_be_written_is_named_with_what_to_do(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    model = save_model(tmp_path / "model")
    cache.write_text("a file")
    monkeypatch.setenv("KPRUNE_CACHE", str(tmp_path / place))
    with pytest.raises(
        KPruneError, match=r"kprune's cache .* cannot be written.* set KPRUNE_CACHE"
    ):
        cached_overlay(model, THAI)
    with pytest.raises(
        KPruneError, match=r"kprune's cache .* cannot be written.* set KPRUNE_CACHE"
    ):
        head_rows(model, [THAI])
    assert cache.read_text() == "a file"
