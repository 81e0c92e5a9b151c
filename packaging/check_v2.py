"""Run kprune's guard inside the V2 sampler of other vLLM releases, on the CPU.

    python packaging/check_v2.py                     # the releases that kprune supports
    python packaging/check_v2.py 0.33.0 --steps 200  # one of them, for longer

Random requests go through vLLM's own request slots, sampler, rejection sampler and batch kernels,
which Triton interprets. A judge that knows nothing of the guard's tables looks at every committed
token (`tests/support/v2_runs.py`). Of a release, only its Python files are needed: they are fetched
once (12 MB, kept in kprune's cache), and so is Triton (200 MB). Compiled parts, where any are
touched, are those of the installed CPU build. A release takes about a minute for 20 steps.

exit codes: 0 all is well, 1 a refused token was committed or something was counted wrong, 2 a
release or Triton cannot be had
"""

import argparse
import json
import os
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from vllm_files import fetch_release

from vllm_kprune.errors import KPruneError
from vllm_kprune.serving.compat.features import VERSIONS

__all__ = ["main"]

# The simulation is a part of the tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

# Figures, and what the table calls them.
_SHOWN = {
    "tokens": "tokens",
    "inside_a_character": "in a character",
    "while_reasoning": "reasoning",
    "preemptions": "preempted",
    "drafts": "drafts",
    "accepted": "accepted",
    "dead_ends": "dead ends",
    "refused": "refused",
}


def main(words: Sequence[str] | None = None) -> int:
    """The command; gives its exit code."""
    options = _parser().parse_args(words)
    # A pipe has no width, and the table would be cut to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        results = {
            version: _simulate(version, options.steps, options.seed, console)
            for version in options.versions or VERSIONS
        }
    except KPruneError as error:
        sys.stderr.write(f"check_v2: {error}\n")
        return 2
    if options.json:
        options.json.write_text(json.dumps(results, indent=2), encoding="utf-8")
    console.print(_table(results))
    problems = [one for version, runs in results.items() for one in _problems(version, runs)]
    for problem in problems:
        console.print(problem, style="red", soft_wrap=True)
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check_v2.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="by default all of them")
    parser.add_argument("--steps", type=int, default=60, help="steps of each run (60)")
    parser.add_argument("--seed", type=int, default=100, help="another seed, other requests (100)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


def _simulate(version: str, steps: int, seed: int, console: Console) -> list[dict[str, Any]]:
    from support.child import run_script
    from support.triton_package import interpreter_environment

    console.print(f"vLLM {version}: {steps} steps of each run …", highlight=False)
    environment = interpreter_environment(downloads=True)
    release = fetch_release("vllm", version)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(release.path) as files:
            files.extractall(folder)
        # Before the installed vLLM, whose name and version of the package stay in force.
        path = os.pathsep.join([folder, environment["PYTHONPATH"]])
        written = run_script(
            "v2_simulation.py", steps, seed, environment={**environment, "PYTHONPATH": path}
        )
    runs: list[dict[str, Any]] = json.loads(written)
    used = {run["vllm"] for run in runs}
    if used != {version}:
        raise KPruneError(f"expected vLLM {version}, but {', '.join(sorted(used))} was imported")
    return runs


def _table(results: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table("vLLM", *_SHOWN.values(), "seconds", title="Committed tokens, by release")
    for version, runs in results.items():
        figures = sum((Counter(run["figures"]) for run in runs), Counter[str]())
        seconds = sum(run["seconds"] for run in runs)
        table.add_row(version, *(f"{figures[name]:,}" for name in _SHOWN), f"{seconds:.0f}")
    return table


def _problems(version: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    from support.v2_figures import FAULTS, faults

    found = []
    for run in runs:
        what = f"vLLM {version}, {run['tokenizer']}, {run['num_drafts']} drafts ({run['method']})"
        wrong = faults(run["figures"])
        found += [f"{what}: {number} times: {FAULTS[name]}" for name, number in wrong.items()]
        if run["counts"] != run["expected_counts"]:
            found.append(f"{what}: counted {run['counts']}, expected {run['expected_counts']}")
        if run["warm_up_counts"]:
            found.append(f"{what}: warm-up was counted: {run['warm_up_counts']}")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
