"""What pruning costs by scorer, length and language, and from which model size on it pays.

KPRUNE_DATA=FOLDER .venv/bin/python benchmarks/litepruner_cost.py [RANKER] [--rounds 5]
    [--prefill MODEL_FOLDER ...] [--window 256] [--json FILE]

Microseconds of CPU time for a token of the ranker, in one thread, keep 0.7. "Met": all words of the
text were met before. "New": a text that was not pruned before, after half of the corpus was. The
time of encoding the text alone, without any cache, is beside it, and all take turns in a round.
`--prefill` times reading a prompt of 1,024 tokens on this processor, for each model.

The break-even is `break_even_tokens`, as a server computes it: reading a token takes 4 us for each
billion parameters on a GPU that does 5e14 operations a second (2 operations for each parameter).
With `--json`, what is in the file already is not measured again.
"""

import argparse
import csv
import gzip
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.text_pruner import TextPruner
from vllm_kprune.prompt.tokens import encode
from vllm_kprune.serving.pruning.cost import KEEP, Line, break_even_tokens

LENGTHS = (1024, 4096, 16384)
SECONDS_PER_TOKEN_AND_BILLION = 4e-6
BILLIONS = (1, 3, 8, 32, 70)
SCORERS = ("rarity", "question", "sentences", "target_tokens", "attention")
_LEARNED = 4096  # tokens of a text that is pruned to meet words


def corpus(data: Path, language: str) -> tuple[str, list[str]]:
    """The passages of XQuAD, or of KoBEST BoolQ, as one text; and their questions."""
    if language == "ko":
        with (data / "kobest-dev" / "boolq_first400.tsv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
        return "\n\n".join(dict.fromkeys(r["Text"] for r in rows)), [r["Question"] for r in rows]
    with gzip.open(data / "xquad" / f"xquad.{language}.json.gz", "rt", encoding="utf-8") as stream:
        passages = [p for a in json.load(stream)["data"] for p in a["paragraphs"]]
    questions = [qa["question"] for p in passages for qa in p["qas"]]
    return "\n\n".join(p["context"] for p in passages), questions


def cpu_us(call: Callable[[], Any], tokens: int) -> float:
    """Microseconds of CPU time for a token."""
    began = time.process_time()
    call()
    return (time.process_time() - began) / tokens * 1e6


def options_of(scorer: str, tokens: int) -> PruneOptions:
    if scorer == "target_tokens":
        return PruneOptions(target_tokens=int(KEEP * tokens))
    return PruneOptions(keep=KEEP, scorer=scorer)


def measured(
    pruner: TextPruner, data: Path, language: str, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """By length, and "new": by scorer and "encode", the microseconds of each round."""
    text, questions = corpus(data, language)
    offsets = pruner.tokenize(text).offsets
    half = len(offsets) // 2

    def cut(begin: int, end: int) -> str:
        return text[offsets[begin, 0] : offsets[end - 1, 1]]

    for begin in range(0, half, _LEARNED):
        pruner.prune(cut(begin, begin + _LEARNED), options_of("rarity", 1))
    found: dict[str, dict[str, list[float]]] = {}
    for length in LENGTHS:
        # The second half is left for new texts.
        known = cut(0, length)
        calls: dict[str, Callable[[], Any]] = {
            one: partial(pruner.prune, known, options_of(one, length), query=questions[0])
            for one in SCORERS
        }
        calls["encode"] = partial(encode, pruner.tokenizer, known)
        found[str(length)] = {name: [] for name in calls}
        for n in range(rounds + 1):
            for name, call in calls.items():
                # The longest texts with `attention` take half a minute, and vary little.
                if name == "attention" and n > 1:
                    continue
                value = cpu_us(call, length)
                if n:
                    found[str(length)][name].append(value)
    begins = range(half + _LEARNED, len(offsets) - 1024, 1024)
    found["new"] = {
        "rarity": [
            cpu_us(lambda: pruner.prune(cut(b, b + 1024), options_of("rarity", 1)), 1024)  # noqa: B023
            for b in list(begins)[:rounds]
        ]
    }
    return found


def prefill(folder: Path, tokens: int = 1024) -> dict[str, float]:
    """Reading a prompt in transformers, in float32 and one thread."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(1000, 20_000, (1, tokens), generator=torch.Generator().manual_seed(0))
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    with torch.inference_mode():
        us = min(cpu_us(lambda: model(ids, logits_to_keep=1), tokens) for _ in range(2))
    return {"billions": billions, "us": us}


def median(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.1f} ({ordered[0]:.1f} to {ordered[-1]:.1f})"


def show_costs(costs: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    print("| language | tokens | encode alone | " + " | ".join(f"`{s}`" for s in SCORERS) + " |")
    print("|---" * (3 + len(SCORERS)) + "|")
    for language, by_length in costs.items():
        for length in map(str, LENGTHS):
            row = by_length[length]
            cells = [median(row[name]) for name in ("encode", *SCORERS)]
            print(f"| {language} | {int(length):,} | " + " | ".join(cells) + " |")
        print(f"| {language} | 1,024, new | | {median(by_length['new']['rarity'])} | | | | |")


def show_break_even(costs: dict[str, dict[str, dict[str, list[float]]]]) -> None:
    """The least tokens from which pruning pays, by scorer and model size."""
    print("\n| scorer | " + " | ".join(f"{b} B" for b in BILLIONS) + " |")
    print("|---" * (1 + len(BILLIONS)) + "|")
    for scorer in SCORERS:
        # The dearest language decides.
        points = [
            (n, max(statistics.median(c[str(n)][scorer]) for c in costs.values()) * n * 1e-6)
            for n in LENGTHS
        ]
        cells = []
        for billions in BILLIONS:
            reading = Line(0.0, SECONDS_PER_TOKEN_AND_BILLION * billions)
            ranking = Line.through(points[0], points[1])
            tokens = break_even_tokens(reading, ranking, KEEP)
            saves = [
                f"{(reading.per_token * n * (1 - KEEP) - s) / (reading.per_token * n):+.0%}"
                for n, s in points
            ]
            cells.append(f"{'never' if tokens is None else tokens}; {' / '.join(saves)}")
        print(f"| `{scorer}` | " + " | ".join(cells) + " |")


def main() -> None:
    """Measure what is not in the file yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ranker", nargs="?", type=Path)
    parser.add_argument("--language", action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--prefill", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = Path(os.environ.get("KPRUNE_DATA") or sys.exit("set KPRUNE_DATA to the data's folder"))
    torch.set_num_threads(1)
    path: Path | None = options.json
    found = json.loads(path.read_text()) if path and path.exists() else {"cost": {}, "prefill": {}}
    folder = options.ranker or demo_model("gemma-3-270m")
    pruner = TextPruner.from_pretrained(folder, window=options.window)
    pruner.warm()
    work: list[tuple[str, str, Callable[[], Any]]] = [
        ("cost", one, lambda one=one: measured(pruner, data, one, options.rounds))  # type: ignore[misc]
        for one in options.language or ("en", "ko", "zh")
    ]
    work += [("prefill", f.name, lambda f=f: prefill(f)) for f in options.prefill]  # type: ignore[misc]
    for part, name, measure in work:
        if name not in found[part]:
            found[part][name] = measure()
            if path:
                path.write_text(json.dumps(found, indent=1))
    show_costs(found["cost"])
    show_break_even(found["cost"])
    for name, one in found["prefill"].items():
        per = one["us"] / one["billions"]
        print(f"{name}: {one['us']:.0f} us a token, {per:.0f} for each billion parameters")


if __name__ == "__main__":
    main()
