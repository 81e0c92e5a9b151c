"""Which scorer prunes best, by the likelihood of answers after pruned passages.

KPRUNE_DATA=FOLDER .venv/bin/python benchmarks/litepruner_quality.py TARGET --task xquad-en \
    --task xquad-zh --task kobest --scorer rarity/word --scorer attention@RANKER --items 60

Every passage is pruned to `--keep` of its tokens *as the target counts them*, so that all scorers
have the same budget. The target reads <bos>, the pruned passage, and the whole question. Results
are nats per token of the gold answer (mean over its tokens), and differences from random dropping
of tokens (mean of `--seeds` random choices), with 95 % intervals from a paired bootstrap over
passages. Tasks: `xquad-LANGUAGE` (question and gold answer), `kobest` (BoolQ: log-probability of
the gold answer against the other, and accuracy), `kobest-question` (the likelihood of the question
itself after the passage), `continued-LANGUAGE` (the end of a passage whose beginning was pruned). A
scorer is written NAME[/word][@RANKER_FOLDER]; without a folder, the target ranks. `--skip` leaves
out the passages that were used to choose constants. Answers are cached under `--cache`, so an
interrupted run resumes.
"""

import argparse
import csv
import gzip
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import regex
import torch
from packed_likelihood import Probe, Target, Variant

from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.scorers import Scorer, make_scorer
from vllm_kprune.prompt.text_pruner import TextPruner

BASELINE = "random"
_LABELS = {"zh": ("\n问题：", "\n答案："), "ko": ("\n질문: ", "\n정답:")}
_END = regex.compile(r"(?<=[.!?。！？।])\s*")

Candidates = dict[str, Callable[[Path], Scorer]]


@dataclass(frozen=True)
class Item:
    """A passage, its questions with the gold answer first, and the questions for rankers."""

    passage: str
    probes: tuple[tuple[Probe, ...], ...]
    queries: tuple[str, ...]


def xquad(data: Path, language: str) -> Iterator[Item]:
    """Paragraphs of XQuAD with all their questions."""
    with gzip.open(data / "xquad" / f"xquad.{language}.json.gz") as stream:
        articles = json.load(stream)["data"]
    ask, answer = _LABELS.get(language, ("\nQuestion: ", "\nAnswer:"))
    space = "" if language == "zh" else " "
    for paragraph in _paragraphs(articles):
        probes = tuple(
            (Probe(f"{ask}{qa['question']}{answer}", space + qa["answers"][0]["text"]),)
            for qa in paragraph["qas"]
        )
        queries = tuple(qa["question"] for qa in paragraph["qas"])
        yield Item(paragraph["context"], probes, queries)


def _paragraphs(articles: Sequence[dict]) -> Iterator[dict]:
    """The first paragraph of every article, then the second of every one: few items still vary."""
    longest = max(len(article["paragraphs"]) for article in articles)
    for n in range(longest):
        yield from (a["paragraphs"][n] for a in articles if n < len(a["paragraphs"]))


def kobest(data: Path, question: bool = False) -> Iterator[Item]:
    """Korean passages with a yes/no question, the first if a passage has several."""
    ask, answer = _LABELS["ko"]
    seen = set()
    with (data / "kobest-dev" / "boolq_first400.tsv").open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["Text"] in seen:
                continue
            seen.add(row["Text"])
            if question:
                probes = (Probe(ask.rstrip(), f" {row['Question']}"),)
            else:
                words = (" 예", " 아니요") if row["Answer"] == "True" else (" 아니요", " 예")
                probes = tuple(
                    Probe(f"{ask}{row['Question']} (예/아니요){answer}", w) for w in words
                )
            yield Item(row["Text"], (probes,), (row["Question"],))


def continued(items: Iterator[Item]) -> Iterator[Item]:
    """Passages cut at the end of a sentence. The answer is the rest, up to 200 characters."""
    for item in items:
        text = item.passage
        ends = [m.end() for m in _END.finditer(text) if 0.4 < m.start() / len(text) < 0.8]
        if ends:
            cut = min(ends, key=lambda end: abs(end - 0.6 * len(text)))
            rest = text[cut:][:200]
            first = 1 + next((n for n, c in enumerate(rest[1:12]) if c == " "), 1)
            probe = Probe(" " + rest[:first], rest[first:])
            yield Item(text[:cut].rstrip(), ((probe,),), ("",))


def items_of(
    data: Path,
    task: str,
    most: int,
    count: Callable[[str], int],
    longest: int = 400,
    skip: int = 0,
) -> list[Item]:
    """At most `most` passages of a task, after `skip`, with 60 to `longest` target tokens."""
    name, _, detail = task.partition("-")
    if name == "xquad":
        found = xquad(data, detail)
    elif name == "kobest":
        found = kobest(data, detail == "question")
    elif name == "continued":
        found = continued(kobest(data) if detail == "ko" else xquad(data, detail))
    else:
        sys.exit(f"unknown task {task}")
    wanted = (item for item in found if 60 <= count(item.passage) <= longest)
    return list(itertools.islice(wanted, skip, skip + most))


@dataclass(frozen=True)
class Method:
    """A scorer on a ranker, and the unit that is kept or dropped as a whole."""

    label: str
    pruner: TextPruner
    unit: str
    conditioned: bool

    def prune(self, text: str, keep: float, query: str, count: Callable[[str], int]) -> str:
        """What is left of the text within `keep` of the target's tokens."""
        options = PruneOptions(target_tokens=round(keep * count(text)), unit=self.unit)
        return self.pruner.prune(text, options, query=query or None, count=count).text


def make_method(spec: str, default_ranker: Path, candidates: Candidates, seed: int = 0) -> Method:
    """Read NAME[/word][@RANKER]; candidates are scorers that were tried but not shipped."""
    spec, _, ranker = spec.partition("@")
    name, _, unit = spec.partition("/")
    folder = Path(ranker).expanduser() if ranker else default_ranker

    def make(wanted: str) -> Scorer:
        if wanted in candidates:
            return candidates[wanted](folder)
        return make_scorer(wanted, folder, seed=seed)

    pruner = TextPruner(_tokenizer(folder), make, name)
    label = name + (f"/{unit}" if unit else "") + (f"@{folder.name}" if ranker else "")
    unit = unit or ("token" if name == BASELINE else "word")
    return Method(label, pruner, unit, getattr(pruner.scorer(), "uses_query", False))


@cache
def _tokenizer(folder: Path):
    return TextPruner.from_pretrained(folder, scorer=BASELINE).tokenizer


def variants_of(
    item: Item, method: Method, keep: float, count: Callable[[str], int]
) -> list[Variant]:
    """What the target reads: one passage for all questions, or one per question."""
    if keep >= 1 or not method.conditioned:
        text = item.passage if keep >= 1 else method.prune(item.passage, keep, "", count)
        return [Variant(text, probes) for probes in item.probes]
    texts = (method.prune(item.passage, keep, query, count) for query in item.queries)
    return [Variant(text, probes) for text, probes in zip(texts, item.probes, strict=True)]


def merged(variants: Sequence[Variant]) -> list[Variant]:
    """Merge variants with the same passage."""
    by_text: dict[str, dict[Probe, None]] = {}
    for variant in variants:
        by_text.setdefault(variant.passage, {}).update(dict.fromkeys(variant.probes))
    return [Variant(text, tuple(probes)) for text, probes in by_text.items()]


def outcome(target: Target, variant: Variant) -> tuple[float, float]:
    """Gold log-probability, and 1.0 if gold is the likeliest of the answers (NaN without others).

    Nats per token of the only answer; of several answers, the share of the gold one among them.
    """
    known = [target.known(variant.passage, probe) for probe in variant.probes]
    if len(known) == 1:
        return known[0][0] / known[0][1], float("nan")
    sums = np.array([total for total, _ in known])
    return float(sums[0] - np.logaddexp.reduce(sums)), float(sums.argmax() == 0)


class Study:
    """One task: the outcomes of every method, by passage and question."""

    def __init__(self, target: Target, items: Sequence[Item], rates: Sequence[float]) -> None:
        self.target, self.items, self.rates = target, items, rates
        self.values: dict[tuple[str, float], list[npt.NDArray[np.float64]]] = {}
        self.tokens: dict[tuple[str, float], list[float]] = {}
        self.done = 0

    def run(self, methods: Sequence[tuple[str, list[Method]]], deadline: float, name: str) -> None:
        """Average methods with the same label, the random ones. Stops at the deadline."""
        started = time.perf_counter()
        for item in self.items:
            if time.time() > deadline:
                return
            plan = {
                (label, keep): [variants_of(item, m, keep, self.target.count) for m in group]
                for label, group in methods
                for keep in self.rates
            }
            plan["whole", 1.0] = [variants_of(item, methods[0][1][0], 1.0, self.target.count)]
            self.target.compute(merged([v for vs in plan.values() for each in vs for v in each]))
            for cell, groups in plan.items():
                got = [[outcome(self.target, v) for v in each] for each in groups]
                self.values.setdefault(cell, []).append(np.array(got).mean(axis=0))
                sizes = [self.target.count(v.passage) for each in groups for v in each]
                self.tokens.setdefault(cell, []).append(float(np.mean(sizes)))
            self.done += 1
            seconds = time.perf_counter() - started
            print(f"\r{name}: {self.done}/{len(self.items)} ({seconds:.0f} s)", end="", flush=True)

    def row(self, label: str, keep: float, against: str) -> dict:
        """Mean outcome and its difference to a baseline, with 95 % intervals over passages."""
        # The whole passage is the same at every rate.
        own = self.values[label, keep]
        base = self.values["whole", 1.0] if against == "whole" else self.values[against, keep]
        differences = [a - b for a, b in zip(own, base, strict=True)]
        low, high = bootstrap(differences)
        mean = np.concatenate(own).mean(axis=0)
        difference = np.concatenate(differences).mean(axis=0)
        return {
            "scorer": label,
            "keep": keep,
            "tokens": float(np.mean(self.tokens[label, keep])),
            "nats": float(mean[0]),
            "accuracy": float(mean[1]),
            "against": against,
            "difference": float(difference[0]),
            "low": float(low[0]),
            "high": float(high[0]),
            "accuracy_difference": float(difference[1]),
            "accuracy_low": float(low[1]),
            "accuracy_high": float(high[1]),
        }


def bootstrap(differences: Sequence[npt.NDArray[np.float64]], times: int = 4000) -> npt.NDArray:
    """2.5 and 97.5 percentiles of the mean, drawing whole passages: [2, outcomes]."""
    sums = np.array([d.sum(axis=0) for d in differences])
    sizes = np.array([len(d) for d in differences])
    draws = np.random.default_rng(0).integers(0, len(sizes), (times, len(sizes)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)[:, None]
    return np.percentile(means, [2.5, 97.5], axis=0)


def show(task: str, study: Study, labels: Sequence[str], against: Sequence[str]) -> list[dict]:
    """Print the table of a task and return its rows."""
    whole = np.concatenate(study.values["whole", 1.0]).mean(axis=0)
    questions = sum(len(v) for v in study.values["whole", 1.0])
    passages, questions = study.done, sum(map(len, study.values["whole", 1.0]))
    head = f"{task}: {passages} passages, {questions} questions; unpruned {whole[0]:.3f} nats"
    print(f"\n\n{head}" + ("" if np.isnan(whole[1]) else f", accuracy {whole[1]:.1%}"))
    print("\n| scorer | " + " | ".join(f"keep {keep}" for keep in study.rates) + " |")
    print("|---" * (1 + len(study.rates)) + "|")
    rows = []
    for label in labels:
        cells = []
        for keep in study.rates:
            per = [study.row(label, keep, base) for base in against]
            rows += [{"task": task, "passages": study.done, **row} for row in per]
            cell = f"{per[0]['nats']:.3f}"
            for row in per:
                if row["against"] != label:
                    cell += f" ({row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}])"
            if not np.isnan(per[0]["accuracy"]):
                cell += f" {per[0]['accuracy']:.1%}"
            cells.append(cell)
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
    return rows


def load_candidates(path: Path | None) -> Candidates:
    """`CANDIDATES` of a Python file: functions that make a scorer from a folder, by name."""
    if path is None:
        return {}
    sys.path.insert(0, str(path.resolve().parent))
    return __import__(path.stem).CANDIDATES


def main() -> None:
    """Run the tasks, print their tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("--task", action="append", required=True)
    parser.add_argument("--scorer", action="append", default=[])
    parser.add_argument("--candidates", type=Path, help="a Python file with more scorers")
    parser.add_argument("--keep", type=float, action="append")
    parser.add_argument("--against", action="append", help="baselines among the scorers")
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--skip", type=int, default=0, help="the number of passages to skip")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time")
    parser.add_argument("--longest", type=int, default=400, help="the most tokens of a passage")
    parser.add_argument("--pack-tokens", type=int, default=450)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache", type=Path, default=Path("quality-cache.jsonl"))
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    data = Path(os.environ.get("KPRUNE_DATA") or sys.exit("set KPRUNE_DATA to the data's folder"))
    target = Target(
        options.target, options.cache, getattr(torch, options.dtype), options.pack_tokens
    )
    candidates = load_candidates(options.candidates)
    baselines = [BASELINE, *(s for s in options.scorer if s.partition("/")[0] == BASELINE)]
    methods = [
        (spec, [make_method(spec, options.target, candidates, n) for n in range(options.seeds)])
        for spec in baselines
    ]
    for spec in options.scorer:
        if spec not in baselines:
            method = make_method(spec, options.target, candidates)
            methods.append((method.label, [method]))
    deadline = time.time() + 60 * options.minutes
    rows = []
    for number, task in enumerate(options.task):
        items = items_of(data, task, options.items, target.count, options.longest, options.skip)
        study = Study(target, items, options.keep or [0.9, 0.8, 0.7])
        share = (deadline - time.time()) / (len(options.task) - number)
        study.run(methods, time.time() + share, task)
        rows += show(task, study, [m[0] for m in methods], options.against or [BASELINE])
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
