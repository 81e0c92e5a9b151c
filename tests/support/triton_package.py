"""PyTorch's compiler for GPUs, Triton, for scripts that run its kernels on the CPU, interpreted.

The CPU build of vLLM leaves Triton out, and an environment that has it beside a CPU torch is
another one than `make setup` makes. So Triton has a folder of its own in kprune's cache, which only
these scripts find. `triton_interpreter.py` is what they do with it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from support.child import script_environment
from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.cache import cache_dir

__all__ = ["interpreter_environment"]

TRITON = "3.7.0"  # what torch 2.13 is built with


def interpreter_environment(downloads: bool) -> dict[str, str]:
    """The environment variables of a script that interprets kernels, with Triton in reach.

    Installs Triton on first use (200 MB of downloads). Raises `KPruneError` where it cannot be had.
    """
    environment = script_environment()
    folders = [str(_triton_folder(downloads)), environment["PYTHONPATH"]]
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join(folders),
        "TRITON_INTERPRET": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        # Interpreted kernels are thousands of small operations, which threads only slow down.
        "OMP_NUM_THREADS": "1",
    }


def _triton_folder(downloads: bool) -> Path:
    tag = sys.implementation.cache_tag
    root = cache_dir() / "triton"
    target = root / f"{TRITON}-{tag}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{target.name}.lock"):
        if not target.is_dir():
            if not downloads:
                raise KPruneError(f"triton {TRITON} is not in kprune's cache")
            _install(target)
    return target


def _install(target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch) / target.name
        command = [*pip, "--no-deps", "--only-binary", ":all:", "--target", str(folder)]
        done = subprocess.run(
            [*command, f"triton=={TRITON}"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            reason = (done.stderr or done.stdout).strip()[-300:]
            raise KPruneError(f"triton {TRITON} cannot be installed: {reason}")
        # Compilers for real GPUs, a third of the package; the interpreter needs none.
        shutil.rmtree(folder / "triton" / "backends" / "nvidia" / "bin", ignore_errors=True)
        folder.rename(target)
