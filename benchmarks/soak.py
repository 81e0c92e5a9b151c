"""A server under mixed load for a long time: nothing lost, nothing wrong, memory flat.

    .venv/bin/python benchmarks/soak.py [MODEL] [--minutes 30] [--at-once 16] [--seed 0]
        [--profile enko] [--plain] [--without KIND ...] [--json build/soak.json]

Requests of many kinds (chats, completions, streams, guards that change with each request, input
pruning, cancellations, mistakes, long prompts; `soak_traffic.py` has the table) come from a seed,
`--at-once` of them at any time, which is more than the server can do. Afterwards every greedy
request that was asked is asked once more, alone. Counted are:

- errors that were not asked for, and mistakes that were not refused with HTTP 400;
- characters that the request's guard does not allow;
- greedy answers that are not those that the same requests get alone. Two batches may round
  differently, so an answer may differ from where the two best tokens are as good as one another;
- the memory that the server's processes share with nobody (USS): its slope, with a 95 % interval,
  after a fifth of the time, for all and for each.

`--plain` runs vLLM without kprune: of that, only the memory says something, to compare with.

No request has a `seed`: vLLM 0.32's CPU engine dies of one whose prompt is read in several chunks.
The exit code is 1 if anything but memory is above zero, or if memory certainly grows by more than
1 % of itself in an hour.
"""

import argparse
import json
import math
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from soak_traffic import KINDS, PLAIN_KINDS, Answer, Asked, draw, foreign, send

from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.demo.servers import VllmServer, log_tail

GUARD = {"languages": "en,ko"}
# Log-probabilities that differ by less may change places between two batches.
TIE = 0.01
# Different greedy requests: so many that the last part, one after the other, does not take long.
DISTINCT = 150
SAMPLE_SECONDS = 2.0
BLOCKS = 12


class Soak:
    """The run: what was asked and answered, and the server's memory over time."""

    def __init__(
        self, server: VllmServer, seed: int, kinds: Sequence[str], *, checked: bool = True
    ) -> None:
        self.server, self.chance = server, random.Random(seed)
        self.kinds, self.checked = kinds, checked
        self.lock = threading.Lock()
        self.greedy: dict[bytes, Asked] = {}
        self.answers: dict[bytes, list[Answer]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.found: Counter[str] = Counter()
        self.examples: list[str] = []
        self.memory: list[tuple[float, dict[str, int]]] = []

    def next(self) -> Asked:
        """The next request. Once there are enough greedy ones, they come again."""
        with self.lock:
            asked = draw(self.chance, self.server.model, GUARD, self.kinds)
            if asked.greedy and asked.stop_after is None and len(self.greedy) >= DISTINCT:
                asked = self.chance.choice(list(self.greedy.values()))
            elif asked.greedy and asked.stop_after is None:
                self.greedy[asked.body] = asked
            return asked

    def ask(self, asked: Asked) -> None:
        """Send a request, and count what came of it."""
        try:
            answer = send(self.server.url, asked)
        except (OSError, ValueError, KeyError) as error:
            self.note("lost", asked, f"{type(error).__name__}: {error}")
            return
        with self.lock:
            self.found["requests"] += 1
            self.found[f"requests: {asked.kind}"] += 1
            self.seconds.setdefault(asked.kind, []).append(answer.seconds)
            # The body of a cancelled request can be that of a whole one.
            if asked.body in self.greedy and asked.stop_after is None:
                self.answers.setdefault(asked.body, []).append(answer)
        if answer.status != asked.wanted:
            self.note("wrong status", asked, f"{answer.status}, expected {asked.wanted}")
        elif self.checked and (strangers := foreign(asked, answer.text)):
            self.note("wrong language", asked, repr(sorted(strangers)[:5]))

    def note(self, what: str, asked: Asked, detail: str) -> None:
        """Count a defect, and keep the first few."""
        with self.lock:
            self.found[what] += 1
            if len(self.examples) < 20:
                self.examples.append(f"{what} ({asked.kind}): {detail}; {asked.body[:400]!r}")

    def compare_alone(self) -> None:
        """Ask every greedy request once more, with nothing beside it."""
        for body, asked in self.greedy.items():
            alone = send(self.server.url, asked)
            for answer in self.answers.get(body, ()):
                self.found["greedy answers"] += 1
                if answer.text == alone.text:
                    continue
                if _tied(answer, alone):
                    self.found["greedy answers, tied"] += 1
                else:
                    self.note("differs", asked, f"{answer.text!r}, alone {alone.text!r}")


def _tied(one: Answer, other: Answer) -> bool:
    """Were the two best tokens as good as one another where two answers part?"""
    for (token, gap), (own, own_gap) in zip(one.steps, other.steps, strict=False):
        if token != own:
            return min(gap, own_gap) < TIE
    return False


def main() -> int:
    """Run the server and the traffic, and print what was found."""
    options = _arguments()
    model = Path(options.model) if Path(options.model).is_dir() else demo_model(options.model)
    arguments = ["--enforce-eager", "--dtype", "float32", "--max-model-len", "2048",
                 "--logprobs-mode", "processed_logprobs"]  # fmt: skip
    if not options.plain:
        arguments += ["--plugin", "kprune", "--kprune-languages", "en,ko", "--kprune-input-pruner",
                      "self", "--kprune-min-tokens", "0"]  # fmt: skip
    if options.profile:
        arguments += ["--kprune-profile", options.profile]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with VllmServer(model, arguments, environment=environment) as server:
        kinds = [k for k in (PLAIN_KINDS if options.plain else KINDS) if k not in options.without]
        soak = Soak(server, options.seed, kinds, checked=not options.plain)
        _drive(soak, options.minutes * 60, options.at_once)
        if "engine died" not in soak.found:
            soak.compare_alone()
    summary = _summary(soak, options)
    sys.stdout.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return int(bool(summary["defects"]) or summary["memory"]["grows"])


def _drive(soak: Soak, seconds: float, at_once: int) -> None:
    """Ask from so many threads for so long; the memory is looked at meanwhile."""
    end = time.monotonic() + seconds
    stopped = threading.Event()

    def ask_on() -> None:
        while time.monotonic() < end and not stopped.is_set():
            soak.ask(soak.next())

    with ThreadPoolExecutor(at_once) as pool:
        running = [pool.submit(ask_on) for _ in range(at_once)]
        while time.monotonic() < end and not all(one.done() for one in running):
            soak.memory.append((time.monotonic(), _private_bytes(soak.server.pid)))
            if "EngineDeadError" in log_tail(soak.server.log, lines=50):
                soak.found["engine died"] += 1
                stopped.set()
                break
            time.sleep(SAMPLE_SECONDS)
        for one in running:
            one.result()


def _summary(soak: Soak, options: argparse.Namespace) -> dict[str, Any]:
    bad = ("lost", "wrong status", "wrong language", "differs", "engine died")
    return {
        "minutes": options.minutes,
        "at_once": options.at_once,
        "seed": options.seed,
        "defects": {name: soak.found[name] for name in bad if soak.found[name]},
        "examples": soak.examples,
        "counts": {k: v for k, v in sorted(soak.found.items()) if k not in bad},
        "distinct_greedy_requests": len(soak.greedy),
        "seconds": {kind: _quantiles(times) for kind, times in sorted(soak.seconds.items())},
        "memory": growth([(second, sum(sizes.values())) for second, sizes in soak.memory]),
        "memory_by_process": {
            name: growth([(second, sizes[name]) for second, sizes in soak.memory if name in sizes])
            for name in soak.memory[-1][1]
        },
    }


def _private_bytes(pid: int) -> dict[str, int]:
    """The bytes of each of a server's processes that no other process maps.

    Shared pages are divided among those that map them, so they would tell of the neighbours.
    """
    found = {}
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.Error):
            found[f"{process.name()} {process.pid}"] = process.memory_full_info().uss
    return found


def _quantiles(times: Sequence[float]) -> Mapping[str, float]:
    p50, p99 = np.quantile(np.array(times), [0.5, 0.99])
    return {"n": len(times), "p50": round(float(p50), 3), "p99": round(float(p99), 3),
            "max": round(max(times), 3)}  # fmt: skip


def growth(samples: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """The slope of memory over time, after a fifth of it, with a 95 % interval.

    Samples that follow one another are alike, so the line goes through the means of 12 blocks.

    >>> growth([(second, 10**9 + second * 1000) for second in range(100)])["mb_per_hour"]
    3.6
    """
    kept = np.array(samples[len(samples) // 5 :], dtype=np.float64)
    if len(kept) < 2 * BLOCKS:
        return {"grows": False, "mb_per_hour": None, "reason": "too few samples"}
    blocks = [block.mean(axis=0) for block in np.array_split(kept, BLOCKS)]
    hours, mb = (np.array(blocks) - [kept[0, 0], 0.0]).T / [[3600.0], [1e6]]
    slope, intercept = np.polyfit(hours, mb, 1)
    rest = mb - (slope * hours + intercept)
    spread = math.sqrt((rest @ rest) / (BLOCKS - 2) / ((hours - hours.mean()) ** 2).sum())
    low, high = slope - 2.23 * spread, slope + 2.23 * spread  # t with 10 degrees of freedom
    return {
        "grows": bool(low > 0.01 * mb.mean()),
        "mb_per_hour": round(float(slope), 3),
        "interval": [round(float(low), 3), round(float(high), 3)],
        "mb": round(float(mb.mean()), 1),
        "mb_over_time": [round(float(one), 1) for one in mb],
        "peak_mb": round(float(kept[:, 1].max() / 1e6), 1),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--profile", help="also prune the vocabulary to this profile")
    parser.add_argument("--plain", action="store_true", help="vLLM without kprune, to compare")
    parser.add_argument("--without", nargs="+", choices=list(KINDS), default=[], metavar="KIND")
    parser.add_argument("--json", type=Path, help="also write the summary here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
