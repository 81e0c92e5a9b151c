"""A/B from Python: your own prompts and your own metric, next to a suite of kprune's.

vllm serve MODEL --port 8000
vllm serve MODEL --port 8001 --plugin kprune --kprune-profile enko
python examples/ab_test.py http://localhost:8000 http://localhost:8001 build/ab-test

A suite is a subclass of `Suite` with a `run` that returns measurements. The library asks both sides
alternately, keeps the answers (if you run it again, nothing is asked twice), computes the
statistics, and writes the same report as `kprune compare`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_kprune.compare.asking import Task, answered, ask_both
from vllm_kprune.compare.comparing import compare_endpoints
from vllm_kprune.compare.endpoint.messages import Request
from vllm_kprune.compare.measurements import Example, Measurement, Metric, SuiteResult
from vllm_kprune.compare.run import Context, Suite
from vllm_kprune.compare.suites.latency import Latency

CAPITALS_AND_MORE = {  # a beginning, and a word that a correct continuation contains
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
class Knowledge(Suite):
    """How many continuations contain the right word."""

    name = "knowledge"
    help = "greedy continuations that contain the right word"
    metrics = ("right",)

    def run(self, context: Context) -> SuiteResult:
        """Ask both sides every beginning."""
        tasks = [
            Task(prompt, Request("completion", prompt=prompt, max_tokens=16), reference=word)
            for prompt, word in CAPITALS_AND_MORE.items()
        ]
        done = answered(tasks, ask_both(context, self.name, tasks))
        right = [[float(str(t.reference) in answer.text) for answer in pair] for t, pair in done]
        metric = Metric("right", "right word", "share", "higher", margin=0.05)
        scores = np.array(right)
        items = tuple(task.key for task, _ in done)
        examples = (
            Example(t.key, t.key, (a.text, b.text), reference=t.reference) for t, (a, b) in done
        )
        measurement = Measurement(metric, items, scores[:, :1], scores[:, 1:])
        return SuiteResult(self.name, (measurement,), tuple(examples))


def main(original: str, pruned: str, folder: Path) -> None:
    """Compare, write the report, and print the main results."""
    latency = Latency(Latency.Options(rounds=8, batches=(1,)))
    report = compare_endpoints(original, pruned, suites=[Knowledge(), latency], output=folder)
    for suite in report.suites:
        for metric in suite.metrics[:1]:
            sides = f"{metric.shown.original} -> {metric.shown.pruned}, {metric.shown.effect}"
            sys.stdout.write(f"{metric.title}: {sides} ({metric.words})\n")
    sys.stdout.write(f"{report.summary}\n{folder / 'report.html'}\n")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
