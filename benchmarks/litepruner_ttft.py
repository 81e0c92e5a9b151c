"""Time to first token with and without input pruning, on one server, and where it begins to pay.

.venv/bin/python benchmarks/litepruner_ttft.py [MODEL] [--tokens 512 2048 8192] [--keep 0.7]
    [--scorers rarity attention] [--rounds 9] [--window N] [--threads N] [--json FILE]

MODEL is the reference model by default, and is its own ranker. For each length, a round sends a
prompt that was never sent before, whole and pruned by each scorer, in an order that changes from
round to round, so neither vLLM's prefix cache nor the pruner's can help. A result is the time from
sending a streamed request to its first token, and ratios are taken within a round. The text is
XQuAD's English if KPRUNE_DATA names the data, otherwise random words. Run it on an idle machine,
and publish the machine, and what else ran, with the results.
"""

import argparse
import gzip
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from openai import OpenAI
from tokenizers import Tokenizer

from vllm_kprune.demo.reference.build import demo_model
from vllm_kprune.demo.servers import VllmServer

WHOLE = "whole"
Figures = dict[int, dict[str, list[float]]]


def main() -> None:
    """Measure, and print the tables."""
    options = parse()
    model = options.model or str(demo_model("gemma-3-270m"))
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    prompts = make_prompts(tokenizer, sentences(), options.seed)
    with VllmServer(model, arguments(options), environment=ENVIRONMENT) as server:
        with urlopen(f"{server.url}/kprune", timeout=60) as response:
            status = json.loads(response.read())["input_pruner"]
        figures = measure(server, options, prompts)
    show(figures, options, status)
    if options.json:
        found = {"model": Path(model).name, "options": vars(options), "status": status}
        report = {**found, "ttft_ms": figures}
        options.json.write_text(json.dumps(report, indent=2, default=str), encoding="utf-8")


ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--scorers", nargs="+", default=["rarity", "attention"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--window", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--eager", action="store_true", help="start faster, compile nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def arguments(options: argparse.Namespace) -> list[str]:
    """Options of `vllm serve`: without a cache, which would make a second request cheaper."""
    found = ["--plugin", "kprune", "--kprune-input-pruner", "self", "--kprune-pruner-cache", "0"]
    found += ["--no-enable-prefix-caching", "--max-model-len", str(max(options.tokens) + 64)]
    for name in ("window", "threads"):
        if value := getattr(options, name):
            found += [f"--kprune-pruner-{name}", str(value)]
    return [*found, *(["--enforce-eager"] * options.eager)]


def sentences() -> list[str]:
    """Real sentences, or random words."""
    if folder := os.environ.get("KPRUNE_DATA"):
        with gzip.open(Path(folder) / "xquad" / "xquad.en.json.gz", "rt", encoding="utf-8") as file:
            articles = json.load(file)["data"]
        passages = [passage["context"] for one in articles for passage in one["paragraphs"]]
        return [f"{one.strip()}." for passage in passages for one in passage.split(". ")]
    rng = random.Random(0)
    words = ["".join(rng.choices("aeiourtnslkmd", k=rng.randint(2, 9))) for _ in range(5000)]
    return [f"{' '.join(rng.choices(words, k=rng.randint(6, 20)))}." for _ in range(4000)]


def make_prompts(tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> Any:
    """Makes prompts of a given length, each with other sentences in another order."""
    rng = random.Random(seed)

    def make(tokens: int) -> str:
        parts: list[str] = []
        while True:
            parts += rng.sample(texts, k=min(64, len(texts)))
            encoding = tokenizer.encode(" ".join(parts), add_special_tokens=False)
            if len(encoding.ids) >= tokens:
                return " ".join(parts)[: encoding.offsets[tokens - 1][1]]

    return make


def measure(server: VllmServer, options: argparse.Namespace, prompts: Any) -> Figures:
    """Milliseconds to the first token: length -> method -> one per round."""
    figures: Figures = {n: {how: [] for how in (WHOLE, *options.scorers)} for n in options.tokens}
    with OpenAI(base_url=server.base_url, api_key="none", timeout=600, max_retries=0) as client:
        for tokens in options.tokens:  # warm up: shapes, word lists and weights
            for how in figures[tokens]:
                ttft_ms(client, server.model, prompts(tokens), how, options.keep)
        for number in range(options.rounds):
            for tokens in options.tokens:
                ways = list(figures[tokens])
                at = number % len(ways)
                for how in [*ways[at:], *ways[:at]]:
                    took = ttft_ms(client, server.model, prompts(tokens), how, options.keep)
                    figures[tokens][how].append(took)
            sys.stderr.write(f"round {number + 1} of {options.rounds}\n")
    return figures


def ttft_ms(client: OpenAI, model: str, prompt: str, how: str, keep: float) -> float:
    """Milliseconds from sending a prompt to its first token."""
    asked: dict[str, Any] = {"kprune_keep": "off"}
    if how != WHOLE:
        asked = {"kprune_keep": keep, "kprune_scorer": how, "kprune_min_tokens": 0}
    extra = {"vllm_xargs": asked}
    started = time.perf_counter()
    stream = client.completions.create(
        model=model, prompt=prompt, max_tokens=1, temperature=0, stream=True, extra_body=extra
    )
    took = 0.0
    for _ in stream:
        took = took or (time.perf_counter() - started) * 1e3
    return took


def show(figures: Figures, options: argparse.Namespace, status: Any) -> None:
    """Print a table, and from which length on each scorer saves time."""
    sys.stdout.write(f"\nkeep {options.keep}; ms to the first token, median of {options.rounds}\n")
    for tokens, found in figures.items():
        sys.stdout.write(f"{tokens:>6} tokens: whole {statistics.median(found[WHOLE]):.0f}")
        for scorer in options.scorers:
            median = statistics.median(found[scorer])
            sys.stdout.write(f"; {scorer} {median:.0f} (x {spread(found[scorer], found[WHOLE])})")
        sys.stdout.write("\n")
    for scorer in options.scorers:
        sys.stdout.write(f"{scorer} pays {paying(figures, scorer)}\n")
    sys.stdout.write(f"the server's own measurement: {json.dumps(status['break_even'])}\n")


def spread(pruned: Sequence[float], whole: Sequence[float]) -> str:
    """Median, lowest and highest of the rounds' ratios."""
    ratios = [one / other for one, other in zip(pruned, whole, strict=True)]
    return f"{statistics.median(ratios):.3f}, {min(ratios):.3f} - {max(ratios):.3f}"


def paying(figures: Figures, scorer: str) -> str:
    """Where the median saving crosses zero, between the measured lengths."""
    saved = {
        n: statistics.median([w - p for w, p in zip(f[WHOLE], f[scorer], strict=True)])
        for n, f in sorted(figures.items())
    }
    lengths = list(saved)
    if saved[lengths[0]] > 0:
        return f"from {lengths[0]} tokens or fewer on"
    for below, above in pairwise(lengths):
        if saved[below] <= 0 < saved[above]:
            share = -saved[below] / (saved[above] - saved[below])
            return f"from about {below + share * (above - below):.0f} tokens on"
    return f"nowhere up to {lengths[-1]} tokens"


if __name__ == "__main__":
    main()
