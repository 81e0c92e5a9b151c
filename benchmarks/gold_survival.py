"""How many gold answers are still in the text after pruning: quick, and no model answers.

KPRUNE_DATA=FOLDER .venv/bin/python benchmarks/gold_survival.py RANKER --task xquad-en \
    --scorer rarity --scorer sentences --keep 0.7 --skip 140 --items 40

A share of 1 is a text that still has every answer, letter by letter, blanks aside; it says nothing
about what a model makes of the text. Intervals are a paired bootstrap over passages, against the
first scorer. `overlap` and `stopwords` are baselines of `scorer_candidates.py`.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from litepruner_quality import Item, Method, bootstrap, items_of, make_method
from scorer_candidates import CANDIDATES

from vllm_kprune.prompt.budget import PruneOptions


def survived(item: Item, method: Method, keep: float) -> list[float]:
    """For each question, 1 if its gold answer is left."""
    options = PruneOptions(keep=keep, unit="token" if method.unit == "token" else "word")
    left: dict[str | None, str] = {}
    found = []
    for query, (probe, *_) in zip(item.queries, item.probes, strict=True):
        asked = query if method.conditioned else None
        if asked not in left:
            pruned = method.pruner.prune(item.passage, options, query=asked)
            left[asked] = "".join(pruned.text.split())
        found.append(float("".join(probe.answer.split()) in left[asked]))
    return found


def main() -> None:
    """Print a row for each scorer and rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ranker", type=Path)
    parser.add_argument("--task", default="xquad-en")
    parser.add_argument("--scorer", action="append", default=[])
    parser.add_argument("--keep", type=float, action="append")
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--skip", type=int, default=0, help="the number of passages to skip")
    options = parser.parse_args()
    data = Path(os.environ.get("KPRUNE_DATA") or sys.exit("set KPRUNE_DATA to the data's folder"))
    methods = [
        make_method(spec, options.ranker, CANDIDATES) for spec in options.scorer or ["rarity"]
    ]

    def count(text: str) -> int:
        return len(methods[0].pruner.tokenize(text).ids)

    items = items_of(data, options.task, options.items, count, 10_000, options.skip)
    for keep in options.keep or [0.9, 0.7, 0.5]:
        rows = [[np.array(survived(item, one, keep))[:, None] for item in items] for one in methods]
        for method, row in zip(methods, rows, strict=True):
            low, high = bootstrap([a - b for a, b in zip(row, rows[0], strict=True)])
            questions = np.concatenate(row)
            print(
                f"| {options.task} | {keep} | {method.label} | {questions.mean():.1%} "
                f"[{low[0]:+.1%}, {high[0]:+.1%}] | {len(items)} passages, {len(questions)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
