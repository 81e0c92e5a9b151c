"""The paper's experiment on a small scale: original, EnKo and EnKoZh of two models, served live.

.venv/bin/python benchmarks/paper.py [--models NAME ...] [--profiles NAME ...] [--suites NAME ...]
    [--limit N] [--ifeval] [--eager] [-o build/paper]

For each model and profile, the original and the pruned model are served side by side, and the
suites of `kprune compare` run on both: stability at temperatures 0 and 1, translation, accuracy,
exactness, latency, memory. Each comparison writes report.json and report.html to OUT/MODEL/PROFILE.
OUT/paper.md and paper.json have one table of all, with confidence intervals. Finished comparisons
are not repeated, and interrupted ones resume.

`KPRUNE_DATA` names a folder with real text: prompts of the Language Confusion Benchmark, parallel
sentences, and questions (`paper_data.py` lists the files). Without it, kprune's own prompts are
used, and accuracy is left out. `AMOUNTS` says how much is asked: 80 minutes in total on two cores
of a virtual machine. `--limit` sets the number of items of every suite. Missing models are built
(240 MB and 1.1 GB of downloads).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paper_data import own_data
from paper_table import Reports, write_table

from vllm_kprune.compare.conclude import write_all
from vllm_kprune.compare.options import CommonOptions
from vllm_kprune.compare.report.document import Report
from vllm_kprune.compare.report.report_file import read_report
from vllm_kprune.compare.suites import SUITES
from vllm_kprune.demo.pairs import make_pair, serve_pair
from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.demo.served import Amounts, check_kept, compare_served
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import load_profile
from vllm_kprune.signals import ended_by_signals

PROFILES = ("enko", "enkozh")
LANGUAGES = {"enko": ("ko", "en"), "enkozh": ("ko", "en", "zh")}
# Items of each suite (of each direction and task, where it has several), and tokens of an answer.
AMOUNTS: Mapping[str, Amounts] = {
    "gemma-3-270m": {
        "stability": {"limit": 80, "max_tokens": 64},
        "translation": {"limit": 40, "max_tokens": 96},
        "accuracy": {"limit": 60, "max_tokens": 64},
        "exactness": {"limit": 24, "max_tokens": 32},
        "latency": {"rounds": 20, "tokens": 24},
        "memory": {},
    },
    "qwen2.5-coder-1.5b-instruct": {
        "stability": {"limit": 40, "max_tokens": 48},
        "translation": {"limit": 20, "max_tokens": 64},
        "accuracy": {"limit": 24, "max_tokens": 64},
        "exactness": {"limit": 10, "max_tokens": 24},
        "latency": {"rounds": 12, "tokens": 12},
        "memory": {},
    },
}
CONCURRENCY = 16
ARGUMENTS = ("--max-model-len", "2048", "--max-num-seqs", str(CONCURRENCY))


def main() -> None:
    """Run every comparison that is not finished, and write the table."""
    options = parse()
    data = os.environ.get("KPRUNE_DATA")
    files = own_data(Path(data), options.output / "data", ifeval=options.ifeval) if data else {}
    reports: Reports = {}
    with ended_by_signals():
        for model in options.models:
            for profile in options.profiles:
                reports[model, profile] = run(model, profile, options, files)
                path = write_table(reports, options.output)  # each time: the rest takes long
    say(path.read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(AMOUNTS), default=list(AMOUNTS))
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=PROFILES)
    parser.add_argument("--suites", nargs="+", choices=list(SUITES), default=default_suites())
    parser.add_argument("--limit", type=int, help="items of each suite, instead of AMOUNTS")
    parser.add_argument(
        "--ifeval", action="store_true", help="also instruction following, which is slow"
    )
    parser.add_argument(
        "--eager", action="store_true", help="do not compile, which changes the speed"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("build/paper"))
    return parser.parse_args()


def default_suites() -> list[str]:
    names = list(AMOUNTS["gemma-3-270m"])
    return names if os.environ.get("KPRUNE_DATA") else [n for n in names if n != "accuracy"]


def run(model: str, profile: str, options: argparse.Namespace, files: Amounts) -> Report:
    """The report of one configuration; a finished one is reused if its settings are the same."""
    folder = options.output / model / profile
    amounts = amounts_of(model, options, files)
    wanted = json.loads(json.dumps({"amounts": amounts, "eager": options.eager}, default=str))
    finished = folder / "finished.json"
    if finished.is_file() and json.loads(finished.read_text(encoding="utf-8")) == wanted:
        say(f"{model}, {profile}: finished before")
        return read_report(folder / "report.json")
    pair = make_pair(str(demo_model(model, log=say)), load_profile(profile))
    say(f"{model}, {profile}: starting both servers")
    base = CommonOptions(concurrency=CONCURRENCY, languages=LANGUAGES[profile])
    started = time.monotonic()
    check_kept(base, amounts, folder)
    with serve_pair(pair, ARGUMENTS, eager=options.eager) as servers:
        report = compare_served(servers, amounts, base, folder, timeout=1800, progress=Progress())
    write_all(report, folder)
    say(f"{model}, {profile}: {time.monotonic() - started:.0f} s")
    finished.write_text(json.dumps(wanted), encoding="utf-8")
    return report


def amounts_of(
    model: str, options: argparse.Namespace, files: Amounts
) -> dict[str, dict[str, Any]]:
    """How much to ask in each suite, and its files."""
    amounts = {
        name: {**AMOUNTS[model].get(name, {}), **files.get(name, {})} for name in options.suites
    }
    if options.limit is not None:
        for name in amounts:
            amounts[name]["limit"] = options.limit
    return amounts


class Progress:
    """Prints how long each suite took and, on a terminal, how far it is."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}

    def __call__(self, suite: str, done: int, total: int) -> None:
        started = self.started.setdefault(suite, time.monotonic())
        if done == total:
            say(f"  {suite}: {total} in {time.monotonic() - started:.0f} s")
        elif sys.stderr.isatty():
            sys.stderr.write(f"\r  {suite}: {done} of {total} \r")


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    try:
        main()
    except KPruneError as error:
        sys.exit(f"error: {error}")
