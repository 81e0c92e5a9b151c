"""A/B from Python: your own prompts and your own measure, beside a suite of kprune's.

vllm serve MODEL --port 8000
vllm serve MODEL --port 8001 --plugin kprune --kprune-profile enko
python examples/ab_test.py http://localhost:8000 http://localhost:8001 build/ab-test

A suite is any object with a name and a `run` that makes measurements. The library asks both sides
in turns, keeps the answers (run it again and nothing is asked twice), and does the statistics; the
report in the folder is the one that `kprune compare` writes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_kprune.compare.conclude import conclude, write_all
from vllm_kprune.compare.endpoint.messages import Request
from vllm_kprune.compare.measurements import Example, Measurement, Metric, SuiteResult
from vllm_kprune.compare.open_run import Address, open_run
from vllm_kprune.compare.run import (
    CompareOptions,
    Context,
    Task,
    answered,
    ask_both,
    run_suites,
)
from vllm_kprune.compare.suites import SUITES

FACTS = {  # a beginning, and what a right continuation names
    "대한민국의 수도는": "서울",
    "일본의 수도는": "도쿄",
    "프랑스의 수도는": "파리",
    "훈민정음을 만든 왕은": "세종",
    "물의 화학식은": "H",
    "1년은 열두": "달",
    "The capital of France is": "Paris",
    "The capital of Japan is": "Tokyo",
    "The chemical formula of water is": "H",
    "The largest planet of the solar system is": "Jupiter",
    "The first president of the United States was George": "Washington",
    "A year has twelve": "months",
}


@dataclass(frozen=True)
class Facts:
    """How many continuations name what they should."""

    name: str = "facts"
    help: str = "greedy continuations that name the right thing"
    metrics: tuple[str, ...] = ("named",)

    def run(self, context: Context) -> SuiteResult:
        """Ask both sides every beginning."""
        tasks = [
            Task(prompt, Request("completion", prompt=prompt, max_tokens=16), reference=fact)
            for prompt, fact in FACTS.items()
        ]
        done = answered(tasks, ask_both(context, self.name, tasks))
        named = [[float(FACTS[t.key] in answer.text) for answer in pair] for t, pair in done]
        metric = Metric("named", "right thing named", "share", "higher", margin=0.05)
        scores = np.array(named)
        items = tuple(task.key for task, _ in done)
        texts = (
            Example(t.key, t.key, (a.text, b.text), reference=FACTS[t.key]) for t, (a, b) in done
        )
        measurement = Measurement(metric, items, scores[:, :1], scores[:, 1:])
        return SuiteResult(self.name, (measurement,), tuple(texts))


def main(original: str, pruned: str, folder: Path) -> None:
    """Compare, write the report, and tell the main figures."""
    options = CompareOptions(latency_rounds=8, batches=(1,))
    with open_run(Address(original), Address(pruned), options, folder) as context:
        outcome = run_suites(context, [Facts(), SUITES["latency"]])
        report = conclude(context, outcome.results)
    _, page = write_all(report, folder)
    for suite in report.suites:
        for metric in suite.metrics[:1]:
            figures = f"{metric.shown.original} -> {metric.shown.pruned}, {metric.shown.effect}"
            sys.stdout.write(f"{metric.title}: {figures} ({metric.words})\n")
    sys.stdout.write(f"{report.summary}\n{page}\n")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
