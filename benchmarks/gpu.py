"""All that only a GPU can show of kprune, in one command; a table, and JSON.

    python benchmarks/gpu.py                          # about 15 minutes on an H100
    python benchmarks/gpu.py --quick                  # a third of that
    python benchmarks/gpu.py --steps law4,guard       # some of the steps
    python benchmarks/gpu.py --shape tiny --speed-shape tiny --quick     # on a CPU: does it run?

Run it in the environment of vLLM and kprune, on a machine that does nothing else. Models have
random weights in real shapes, so nothing is downloaded but a tokenizer, which is looked for in
kprune's cache (any model's folder will do: --tokenizer). Each step runs in processes of its own
with a time limit of its own: one that fails or takes too long does not stop the others, and its log
stays in the work folder. What cannot be had on this machine is skipped with its reason.

steps:
{steps}

exit codes: 0 all that ran is as it should be, 1 something is not, or a step failed, 2 a mistake
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu_models import SHAPES, find_tokenizer
from gpu_steps import STEPS, Job, Rows, Step, run_part
from rich.console import Console
from rich.table import Table

from vllm_kprune.errors import KPruneError

__all__ = ["Outcome", "machine", "main", "outcome_table"]

_RESULT = "RESULT "
_PACKAGES = ("vllm-kprune", "vllm", "torch", "triton", "transformers")


@dataclass(frozen=True)
class Outcome:
    """What came of a step; `problem` is why it failed or was skipped."""

    step: str
    seconds: float
    rows: Rows = ()
    figures: Mapping[str, Any] | None = None
    problem: str = ""
    is_skipped: bool = False

    @property
    def is_good(self) -> bool:
        """Is everything as it should be?"""
        return self.is_skipped or (not self.problem and all(row.is_good for row in self.rows))


def main(words: Sequence[str] | None = None) -> int:
    """The command; gives its exit code."""
    options = _parser().parse_args(words)
    console = Console(highlight=False)
    if options.part:
        sys.stdout.write(_RESULT + json.dumps(_run_here(options)) + "\n")
        return 0
    try:
        job = _job(options)
        chosen = _chosen(options.steps, job)
    except KPruneError as error:
        sys.stderr.write(f"gpu: {error}\n")
        return 2
    facts = machine()
    console.print(" · ".join(facts.values()))
    outcomes = []
    for step in chosen:
        console.print(f"{step.name}: {step.what} (at most {step.seconds} s) …", style="dim")
        outcomes.append(_run(step, job))
        if options.json:  # after each step, so that a run that is cut off leaves what it has
            found = {"machine": facts, "job": asdict(job), "steps": list(map(asdict, outcomes))}
            options.json.write_text(json.dumps(found, indent=2, default=str), encoding="utf-8")
    console.print(outcome_table(outcomes))
    return 0 if all(one.is_good for one in outcomes) else 1


def _parser() -> argparse.ArgumentParser:
    steps = "\n".join(f"  {step.name:<8}{step.what}" for step in STEPS)
    parser = argparse.ArgumentParser(
        prog="gpu.py",
        description=(__doc__ or "").format(steps=steps),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shapes = ", ".join(SHAPES)
    parser.add_argument("--steps", default="", help="names with commas between them; all if empty")
    parser.add_argument(
        "--shape",
        default="qwen3-0.6b",
        choices=SHAPES,
        metavar="SHAPE",
        help=f"the model that writes text, with weights on the disk: {shapes} (qwen3-0.6b)",
    )
    parser.add_argument(
        "--speed-shape",
        default="qwen3-8b",
        choices=SHAPES,
        metavar="SHAPE",
        help="the model whose speed is measured; its weights are made in memory (qwen3-8b)",
    )
    parser.add_argument("--profile", default="enko", help="what overlays keep (enko)")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="with tokenizer.json")
    parser.add_argument("--quick", action="store_true", help="fewer requests, lengths and rounds")
    parser.add_argument(
        "--memory", type=float, default=0.8, help="share of the GPU's memory for vLLM (0.8)"
    )
    parser.add_argument("--work", type=Path, default=Path("build/gpu"), help="folder (build/gpu)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser


def _job(options: argparse.Namespace) -> Job:
    return Job(
        work=str(options.work.absolute()),
        tokenizer=str((options.tokenizer or find_tokenizer()).absolute()),
        shape=options.shape,
        speed_shape=options.speed_shape,
        profile=options.profile,
        memory=options.memory,
        is_quick=options.quick,
    )


def _chosen(names: str, job: Job) -> list[Step]:
    known = {step.name: step for step in STEPS}
    asked = [name for name in names.split(",") if name]
    if unknown := [name for name in asked if name not in known]:
        raise KPruneError(f"--steps: got {unknown[0]}, expected some of {', '.join(known)}")
    # Without models there is nothing to do for the others. The folder made last is looked for.
    if not job.pruned_speed_model.is_dir():
        asked.append("models")
    return [step for step in STEPS if not names or step.name in asked]


def _run(step: Step, job: Job) -> Outcome:
    """Each part of a step in a process of its own: the memory of a GPU comes back in no other
    way."""
    began = time.monotonic()
    figures: dict[str, Any] = {}
    for part in step.parts:
        left = step.seconds - (time.monotonic() - began)
        found = _run_part(step, part, job, left)
        if problem := found.get("skipped") or found.get("failed"):
            seconds = time.monotonic() - began
            return Outcome(step.name, seconds, (), figures, problem, "skipped" in found)
        figures[part] = found
    return Outcome(step.name, time.monotonic() - began, tuple(step.rows(figures)), figures)


def _run_part(step: Step, part: str, job: Job, seconds: float) -> dict[str, Any]:
    log = Path(job.work) / "logs" / f"{step.name}-{part}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--part", f"{step.name}:{part}"]
    command += ["--job", json.dumps(asdict(job))]
    # A part that starts servers must be able to stop them, so it is told its own end first.
    environment = {**os.environ, **job.environment, "KPRUNE_GPU_SECONDS": str(max(seconds - 10, 1))}
    with log.open("w", encoding="utf-8") as stderr:
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                timeout=max(seconds, 1),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"not done in {step.seconds} s; its log is {log}"}
    lines = [line for line in done.stdout.splitlines() if line.startswith(_RESULT)]
    if not lines:
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["no message"])[-1]
        return {"failed": f"exit {done.returncode}: {last[-300:]}; its log is {log}"}
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(_RESULT))
    return found


def _run_here(options: argparse.Namespace) -> dict[str, Any]:
    name, _, part = options.part.partition(":")
    try:
        return run_part(name, part, Job(**json.loads(options.job)))
    except KPruneError as error:
        return {"failed": str(error)}


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    facts = {"device": f"{os.cpu_count()} CPUs ({platform.machine()}), no GPU"}
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        name, _, driver = lines.splitlines()[0].partition(", ")
        facts = {"device": name, "driver": f"driver {driver}"}
    except (OSError, subprocess.CalledProcessError, IndexError):
        pass  # the line says that there is none
    facts["python"] = f"Python {platform.python_version()}"
    for package in _PACKAGES:
        try:
            facts[package] = f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return facts


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """A line for each thing that was measured, and for each step that was not."""
    table = Table("step", "what", "seen", "seconds")
    for one in outcomes:
        seconds = f"{one.seconds:.0f}"
        for row in one.rows:
            table.add_row(one.step, row.what, row.seen, seconds, style="" if row.is_good else "red")
            seconds = ""
        if one.problem:
            style = "yellow" if one.is_skipped else "red"
            what = "skipped" if one.is_skipped else "failed"
            table.add_row(one.step, what, one.problem, seconds, style=style)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
