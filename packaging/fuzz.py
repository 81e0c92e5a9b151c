"""Fuzz a reader of kprune's for as long as you like, led by coverage: `make fuzz TARGET=profile`.

Needs atheris, which has wheels for a few versions of Python only; without it, damaged copies of
sound input are tried from a seed, which finds less. A finding stops the run: its bytes are in
build/fuzz/TARGET/. The targets are in tests/support/fuzz_targets.py; `--target all` takes turns.
"""

import argparse
import importlib
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_UNIT_SECONDS = 10  # for one input, before it counts as a finding
_MOST_MB = 2_048


def main() -> int:
    """Run one target in this process, or all of them one after the other in their own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="all")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    # Before what is fuzzed is imported: atheris instruments modules as they are imported.
    atheris = _atheris()
    targets = _imported(atheris)
    if args.target == "all":
        rounds = [[*sys.argv[:1], "--target", name, "--seconds", str(args.seconds),
                   "--seed", str(args.seed)] for name in targets.TARGETS]  # fmt: skip
        return max(subprocess.run([sys.executable, *words], check=False).returncode
                   for words in rounds)  # fmt: skip
    if args.target not in targets.TARGETS:
        parser.error(f"unknown target {args.target}; known: all, {', '.join(targets.TARGETS)}")
    folder = ROOT / "build" / "fuzz" / args.target
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds()[args.target]):
        (folder / f"seed-{number}").write_bytes(seed)
    run = _without_atheris if atheris is None else _with_atheris
    return int(run(targets, args, folder, atheris))


def _atheris() -> Any:
    try:
        return importlib.import_module("atheris")
    except ImportError:
        return None


def _imported(atheris: Any) -> Any:
    if atheris is None:
        return importlib.import_module("support.fuzz_targets")
    # Only kprune itself: to instrument torch would take minutes, and slow down every input.
    with atheris.instrument_imports(include=["vllm_kprune"]):
        return importlib.import_module("support.fuzz_targets")


def _with_atheris(targets: Any, args: argparse.Namespace, folder: Path, atheris: Any) -> int:
    options = [
        f"-max_total_time={args.seconds}", f"-timeout={_UNIT_SECONDS}", f"-seed={args.seed + 1}",
        f"-rss_limit_mb={_MOST_MB}", "-max_len=65536", f"-artifact_prefix={folder}/finding-",
        "-print_final_stats=1", str(folder),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], lambda data: _try(targets, args.target, data))
    atheris.Fuzz()  # ends the process
    return 0


def _without_atheris(targets: Any, args: argparse.Namespace, folder: Path, atheris: Any) -> int:
    from support.malformed import malformed_bytes, malformed_json

    draw, tried, refused, slowest = random.Random(args.seed), 0, 0, 0.0
    seeds, end = targets.seeds()[args.target], time.monotonic() + args.seconds
    while time.monotonic() < end:
        seed = draw.choice(seeds)
        variants = malformed_bytes(seed, 20, draw.randrange(1 << 30))
        if draw.random() < 0.5 and seed[:1] == b"{":
            variants = malformed_json(json.loads(seed), 20, draw.randrange(1 << 30))
        for data in variants:
            began = time.process_time()
            try:
                refused += _try(targets, args.target, data)
            except BaseException:
                (folder / f"finding-{tried}").write_bytes(data)
                raise
            slowest, tried = max(slowest, time.process_time() - began), tried + 1
            if slowest > _UNIT_SECONDS:
                (folder / f"finding-{tried}").write_bytes(data)
                raise SystemExit(f"{args.target}: an input took {slowest:.1f} s: {folder}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(
        f"{args.target}: {tried:,} tries, {refused:,} refused in one line, {tried - refused:,} "
        f"accepted; slowest {slowest:.2f} s, peak {peak:,} MB, no finding\n"
    )
    return 0


def _try(targets: Any, name: str, data: bytes) -> bool:
    """Is it refused? Raises what a defect raises."""
    return targets.attempt(name, data) is not None


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
