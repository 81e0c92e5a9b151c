"""The tables of the LitePruner paper in small: does pruning keep what models can do?

KPRUNE_DATA=FOLDER .venv/bin/python benchmarks/litepruner_paper.py TARGET [--ranker FOLDER] [--plan]
    [--table mgsm --table choice --table retrieval] [--language en] [--items 20] [--minutes 9]

The paper (section 3) prunes demonstrations and retrieved texts with first-layer attention, one by
one, never the question. Here models are too small to answer, so the answer is scored by likelihood:
nats per token of the gold answer, and 1 / rank of the gold one among the candidates (1 is right).

- `mgsm` (tables 1 to 3): 3, 5 or 8 demonstrations with their results; candidates are the results of
  other questions.
- `choice` (tables 1 to 3): XQuAD with `--shots` demonstrations; candidates are the answers to the
  other questions on the passage.
- `retrieval` (tables 4 and 5, in kind): the passage among two of other articles.

With `--ranker`, another model ranks (table 3). Each share is compared with the whole text and with
random dropping at equal tokens, by a paired bootstrap over items. Answers are kept in `--cache`, so
a run that stops goes on. `--plan` says how many tokens are still to be read, and runs nothing.
"""

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from litepruner_quality import bootstrap, xquad
from packed_likelihood import Probe, Target, Variant

from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.text_pruner import TextPruner

SHARES = (0.9, 0.8, 0.7)
SHOTS = (3, 5, 8)
_CANDIDATES = 4
# Less than this is taken as no loss: nats per token, and reciprocal rank.
_MARGINS = (0.05, 0.02)


@dataclass(frozen=True)
class Item:
    """Texts that may be pruned, each with what follows it, and the question with its candidates."""

    texts: tuple[tuple[str, str], ...]
    question: str
    candidates: tuple[str, ...]


def mgsm(data: Path, language: str, shots: int) -> Iterator[Item]:
    """Questions of MGSM after `shots` others. The data has results, but no steps to them."""
    with (data / "eval-mgsm" / f"mgsm_{language}.tsv").open(encoding="utf-8") as stream:
        rows = [(q, a) for q, a in csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]
    shown, asked = rows[:shots], rows[max(SHOTS) :]
    texts = tuple((question, f"\n= {result}\n\n") for question, result in shown)
    for n, (question, result) in enumerate(asked):
        near = [asked[(n + k) % len(asked)][1] for k in range(1, 20)]
        others = list(dict.fromkeys(one for one in near if one != result))
        yield Item(texts, f"{question}\n=", tuple(f" {r}" for r in [result, *others])[:_CANDIDATES])


def choice(data: Path, language: str, shots: int) -> Iterator[Item]:
    """Questions of XQuAD after `shots` passages with a question and its answer, and their own."""
    found = [i for i in xquad(data, language) if len(i.probes) >= _CANDIDATES]
    shown = [(i.passage, f"{i.probes[0][0].prompt}{i.probes[0][0].answer}\n\n") for i in found]
    for item in found[max(SHOTS) :]:
        texts = (*shown[:shots], (item.passage, ""))
        answers = tuple(probe[0].answer for probe in item.probes[:_CANDIDATES])
        yield Item(texts, item.probes[0][0].prompt, answers)


def retrieval(data: Path, language: str, shots: int) -> Iterator[Item]:
    """Passages of XQuAD between two passages of other articles."""
    found = [i for i in xquad(data, language) if len(i.probes) >= _CANDIDATES]
    for n, item in enumerate(found[:-2]):
        # Neighbours in this order are of other articles, and differ from item to item.
        texts = [found[n + 1].passage, found[n + 2].passage]
        texts.insert(n % 3, item.passage)
        answers = tuple(probe[0].answer for probe in item.probes[:_CANDIDATES])
        yield Item(tuple((t, "\n\n") for t in texts), item.probes[0][0].prompt, answers)


TABLES: dict[str, Callable[[Path, str, int], Iterator[Item]]] = {
    "mgsm": mgsm,
    "choice": choice,
    "retrieval": retrieval,
}


@dataclass(frozen=True)
class Cell:
    """How the texts of an item are pruned; a share of 1 leaves them whole."""

    scorer: str
    keep: float

    def variant(self, item: Item, pruner: TextPruner, count: Callable[[str], int]) -> Variant:
        """What the target reads. Random dropping gets as many tokens as attention does.

        Only `sentences` looks at the question, as it does in a request.
        """
        parts = []
        for text, after in item.texts:
            options = PruneOptions(
                target_tokens=max(1, int(self.keep * count(text))),
                unit="token",
                scorer=self.scorer,
                prune_layout=True,
            )
            if self.keep < 1:
                text = pruner.prune(text, options, query=item.question, count=count).text
            parts += [text, after]
        probes = tuple(Probe(item.question, answer) for answer in item.candidates)
        return Variant("".join(parts), probes)


WHOLE = Cell("attention", 1.0)
CELLS = (WHOLE, *(Cell(s, keep) for s in ("attention", "random", "sentences") for keep in SHARES))


def outcome(target: Target, variant: Variant) -> tuple[float, float]:
    """Nats per token of the gold answer, and 1 / its rank by nats per token."""
    known = [target.known(variant.passage, probe) for probe in variant.probes]
    means = np.array([total / tokens for total, tokens in known])  # type: ignore[misc]
    return float(means[0]), 1.0 / float(1 + np.count_nonzero(means[1:] > means[0]))


def left_to_read(target: Target, variants: Sequence[Variant]) -> int:
    """The tokens of what is not in the cache."""
    tokens = 0
    for variant in variants:
        if missing := [p for p in variant.probes if target.known(variant.passage, p) is None]:
            tokens += target.count(variant.passage)
            tokens += sum(target.count(p.prompt + p.answer) for p in missing)
    return tokens


def verdict(low: float, high: float, margin: float) -> str:
    """Whether a loss of at most `margin` is sure, ruled out, or neither.

    >>> verdict(-0.01, 0.03, 0.02), verdict(-0.3, -0.1, 0.02), verdict(-0.1, 0.1, 0.02)
    ('holds', 'does not hold', 'cannot be told yet')
    """
    if low >= -margin:
        return "holds"
    return "does not hold" if high < -margin else "cannot be told yet"


def show(name: str, values: dict[Cell, list[tuple[float, float]]]) -> None:
    """Print each cell, its difference to the whole text, and that to random dropping."""
    items = len(values[WHOLE])
    print(f"\n{name}: {items} items; whole: {_mean(values[WHOLE])}")
    print("| scorer, share | nats, MRR | against whole | no loss | against random |")
    print("|---|---|---|---|---|")
    for cell in CELLS[1:]:
        whole = _difference(values[cell], values[WHOLE])
        chance = _difference(values[cell], values[Cell("random", cell.keep)])
        holds = " / ".join(
            verdict(low, high, margin)
            for (_, low, high), margin in zip(whole, _MARGINS, strict=True)
        )
        row = [f"`{cell.scorer}` {cell.keep}", _mean(values[cell]), _text(whole), holds]
        print("| " + " | ".join([*row, _text(chance)]) + " |")


def _mean(values: Sequence[tuple[float, float]]) -> str:
    nats, rank = np.mean(values, axis=0)
    return f"{nats:.3f}, {rank:.3f}"


def _difference(
    own: Sequence[tuple[float, float]], base: Sequence[tuple[float, float]]
) -> list[tuple[float, float, float]]:
    """Mean, low and high of each outcome."""
    each = np.array(own) - np.array(base)
    low, high = bootstrap([row[None] for row in each])
    return list(zip(each.mean(axis=0), low, high, strict=True))


def _text(differences: Sequence[tuple[float, float, float]]) -> str:
    return ", ".join(f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in differences)


def main() -> None:
    """Run or plan the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("--ranker", type=Path)
    parser.add_argument("--table", action="append", choices=list(TABLES))
    parser.add_argument("--language", action="append")
    parser.add_argument("--shots", type=int, default=5, choices=SHOTS)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--pack-tokens", type=int, default=1500)
    parser.add_argument("--cache", type=Path, default=Path("paper-cache.jsonl"))
    parser.add_argument("--plan", action="store_true")
    options = parser.parse_args()
    data = Path(os.environ.get("KPRUNE_DATA") or sys.exit("set KPRUNE_DATA to the data's folder"))
    target = Target(options.target, options.cache, torch.bfloat16, options.pack_tokens)
    pruner = TextPruner.from_pretrained(options.ranker or options.target, scorer="attention")
    deadline, total = time.time() + 60 * options.minutes, 0
    languages = options.language or ["en"]
    for table in options.table or list(TABLES):
        together: dict[Cell, list[tuple[float, float]]] = {cell: [] for cell in CELLS}
        for language in languages:
            items = list(islice(TABLES[table](data, language, options.shots), options.items))
            values: dict[Cell, list[tuple[float, float]]] = {cell: [] for cell in CELLS}
            for item in items:
                variants = {c: c.variant(item, pruner, target.count) for c in CELLS}
                if options.plan:
                    total += left_to_read(target, list(variants.values()))
                    continue
                if time.time() > deadline:
                    break
                target.compute(list({v.passage: v for v in variants.values()}.values()))
                for cell, variant in variants.items():
                    values[cell].append(outcome(target, variant))
                    together[cell].append(values[cell][-1])
            if values[WHOLE]:
                show(f"{table} {language}, {options.shots} shots", values)
        if len(languages) > 1 and together[WHOLE]:
            show(f"{table} {' '.join(languages)}, {options.shots} shots", together)
    if options.plan:
        print(f"{total:,} tokens are still to be read")


if __name__ == "__main__":
    main()
