"""Time and peak memory of `kprune build`, as a user runs it: whole processes, several runs.

.venv/bin/python benchmarks/build_overlay.py [MODEL] [--runs 5]

MODEL is the reference model by default. Prints median, minimum and maximum. Name the hardware when
you quote them, and use an idle machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KPRUNE = Path(sys.executable).with_name("kprune")


def build_once(model: str, output: Path) -> tuple[float, float, int, int]:
    """Seconds, peak memory in GB, kept tokens and overlay bytes of one build."""
    command = [KPRUNE, "build", model, "--profile", "enko", "-o", output, "--json", "-"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        figures = json.loads(process.stdout.read())
        _, _, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    return seconds, usage.ru_maxrss / 1e6, figures["tokens"]["kept"], figures["overlay_bytes"]


def main() -> None:
    """Run, and print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    model = options.model or subprocess.check_output([KPRUNE, "demo-model"], text=True).strip()
    with tempfile.TemporaryDirectory() as folder:
        runs = [build_once(model, Path(folder) / str(n)) for n in range(options.runs)]
    for name, values in zip(("seconds", "peak GB"), zip(*runs, strict=True), strict=False):
        low, middle, high = min(values), statistics.median(values), max(values)
        sys.stdout.write(f"{name}: {middle:.2f} (min {low:.2f}, max {high:.2f})\n")
    kept, size = runs[0][2:]
    sys.stdout.write(
        f"kept tokens: {kept:,}; overlay: {size / 1e6:.1f} MB; {os.cpu_count()} cores\n"
    )


if __name__ == "__main__":
    main()
