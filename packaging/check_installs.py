"""Install the wheel in an empty environment, with each extra, on each Python, and try it there.

    python packaging/check_installs.py --python python3.11 --python python3.12 --extra compare

Needs `uv` (make audit installs it). The wheel is built twice first, from two copies of the checkout
at two times, and both must be equal byte by byte: a wheel that somebody else builds can be compared
with a published one. What has no wheel for a Python is a failure with pip's reason.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What a package of the extra is imported as: an extra that cannot be imported is of no use.
IMPORTS = {
    "": "vllm_kprune.tokenizer.bpe, vllm_kprune.checkpoint.overlay",
    "accuracy": "lm_eval",
    "compare": "httpx, psutil, py3langid, sacrebleu, vllm_kprune.compare.comparing",
    "demo": "accelerate, gguf, openai, transformers",
    "dev": "hypothesis, mypy, pytest",
    "heal": "altair, peft, vllm_kprune.heal.run",
    "plot": "altair, vl_convert",
    "sparsify": "accelerate, transformers, vllm_kprune.sparsify.run",
}


def main() -> int:
    """Build the wheel, install it everywhere, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", help="interpreters; default: this one")
    parser.add_argument("--extra", action="append", help="default: none, and each but cpu, gpu")
    parser.add_argument("--uv", default=shutil.which("uv") or "uv", help="the uv command")
    parser.add_argument("--keep", type=Path, help="also leave the wheel in this folder")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    args = parser.parse_args()
    # Absolute, because commands run in another folder.
    uv = str(Path(args.uv).absolute()) if Path(args.uv).is_file() else args.uv
    extras = args.extra or ["", *sorted(known_extras() & IMPORTS.keys())]
    with tempfile.TemporaryDirectory(prefix="kprune-installs-") as scratch:
        wheel = reproducible_wheel(Path(scratch))
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, args.keep)
        rows = []
        for python in args.python or [sys.executable]:
            for extra in extras:
                rows.append(installed(uv, python, wheel, extra, Path(scratch) / "env"))
                sys.stdout.write("{python:16} {extra:10} {outcome}\n".format(**rows[-1]))
                sys.stdout.flush()
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return int(any(row["outcome"] != "ok" for row in rows))


def known_extras() -> set[str]:
    """The extras that pyproject.toml has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def reproducible_wheel(scratch: Path) -> Path:
    """The wheel of this checkout. Raises `SystemExit` if it differs from one built elsewhere."""
    built = [_wheel(scratch / name, mask) for name, mask in (("one", 0o022), ("two", 0o077))]
    one, two = (path.read_bytes() for path in built)
    if one != two:
        raise SystemExit(f"two wheels of the same files differ: {_difference(*built)}")
    return built[0]


def _wheel(folder: Path, mask: int) -> Path:
    """Build from a copy at another place, with other times of files and another umask."""
    folder.mkdir()
    checkout = folder / "checkout"
    for name in ("vllm_kprune", "configs"):
        shutil.copytree(ROOT / name, checkout / name, copy_function=shutil.copyfile,
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, checkout / name)
    environment = {**os.environ, "TZ": "UTC" if mask == 0o022 else "Asia/Seoul"}
    environment.pop("SOURCE_DATE_EPOCH", None)
    before = os.umask(mask)
    try:
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
            cwd=checkout, env=environment, check=True, capture_output=True,
        )  # fmt: skip
    finally:
        os.umask(before)
    [wheel] = folder.glob("*.whl")
    return wheel


def _difference(one: Path, two: Path) -> str:
    with zipfile.ZipFile(one) as a, zipfile.ZipFile(two) as b:
        for x, y in zip(a.infolist(), b.infolist(), strict=False):
            if (x.filename, x.date_time, x.external_attr, x.CRC) != (
                *(y.filename, y.date_time, y.external_attr, y.CRC),
            ):
                return f"{x} is {y}"
    return "the order or number of their files"


def installed(uv: str, python: str, wheel: Path, extra: str, env: Path) -> dict[str, str]:
    """Install in a new environment, and run the command and what the extra is for."""
    shutil.rmtree(env, ignore_errors=True)
    try:
        _run(uv, "venv", "--quiet", "--python", python, str(env))
        own = env / "bin" / "python"
        version = _run(str(own), "-c", "import platform; print(platform.python_version())").strip()
        named = f"vllm-kprune[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
        _run(uv, "pip", "install", "--quiet", "--python", str(own), named)
        for command in ("--version", "--help"):
            _run(str(env / "bin" / "kprune"), command)
        _run(str(own), "-c", f"import {IMPORTS.get(extra, 'vllm_kprune')}")
        _run(uv, "pip", "check", "--quiet", "--python", str(own))
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "").strip().splitlines() or [str(error)]
        return {"python": python, "extra": extra, "outcome": f"failed: {lines[-1][:300]}"}
    finally:
        shutil.rmtree(env, ignore_errors=True)
    return {"python": version, "extra": extra, "outcome": "ok"}


def _run(*command: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, env=environment, cwd="/", text=True, capture_output=True,
                          check=True)  # fmt: skip
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
