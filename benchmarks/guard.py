"""What the guard costs without a model: start-up, automatons, masks.

.venv/bin/python benchmarks/guard.py TOKENIZER_FOLDER... [--columns N] [--languages en,ko]
    [--json FILE]

For each folder with a tokenizer.json: seconds to spell the tokens (cold, and from the cache) and to
build automatons; their size; milliseconds of one masked step at batch 1, 8 and 32, best and median
of many, for several ways of writing -inf and for `TokenMask` itself, with and without reporting
which rows changed. Logits are float32, as in vLLM's sampler. Run it on an idle machine, with
OMP_NUM_THREADS set as vLLM sets it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vllm_kprune.guard.automaton import Automaton, build_automaton
from vllm_kprune.guard.mask import TokenMask
from vllm_kprune.guard.policy import parse_policy
from vllm_kprune.guard.spelling import TokenSpellings, load_spellings

POLICIES = ({"languages": "ko"}, {"languages": "ko,en,ja,zh"}, {"scripts": "Hangul"})
BATCHES = (1, 8, 32)
SECONDS_EACH = 0.3


def timed(run: Callable[[], object]) -> tuple[float, Any]:
    """Milliseconds of one call, and its result."""
    started = time.perf_counter()
    result = run()
    return (time.perf_counter() - started) * 1e3, result


def repeated(run: Callable[[], object]) -> tuple[float, float]:
    """Best and median milliseconds of calls in `SECONDS_EACH`."""
    run()
    until = time.perf_counter() + SECONDS_EACH
    times = [timed(run)[0]]
    while time.perf_counter() < until:
        times.append(timed(run)[0])
    return min(times), statistics.median(times)


def start_up(folder: Path) -> tuple[dict[str, float], TokenSpellings]:
    """Seconds to load spellings, cold and cached."""
    with tempfile.TemporaryDirectory() as cache:
        cold, spellings = timed(lambda: load_spellings(folder, Path(cache)))
        cached, _ = timed(lambda: load_spellings(folder, Path(cache)))
    return {"spell_cold_s": cold / 1e3, "spell_cached_s": cached / 1e3}, spellings


def candidates(
    automaton: Automaton, state: int, logits: torch.Tensor
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways of writing -inf to `logits`, by name. The last ones are the package's own."""
    refused = automaton.refused(state)
    ids, ceiling = refused.nonzero().flatten(), torch.full(refused.shape, torch.inf)
    ceiling.masked_fill_(refused, -torch.inf)
    addend = torch.zeros(refused.shape).masked_fill_(refused, -torch.inf)
    yield "masked_fill_", lambda: logits.masked_fill_(refused, -torch.inf)
    yield "index_fill_", lambda: logits.index_fill_(1, ids, -torch.inf)
    yield "add_", lambda: logits.add_(addend)
    yield "minimum", lambda: torch.minimum(logits, ceiling, out=logits)
    yield "argmax, for scale", lambda: logits.argmax(dim=-1)
    mask, groups = TokenMask(), {(automaton, state): range(len(logits))}
    changed = torch.zeros(len(logits), dtype=torch.bool)
    yield "TokenMask", lambda: mask.apply_(logits, groups)
    yield "TokenMask, changed rows", lambda: mask.apply_(logits, groups, changed)


def masks(automaton: Automaton) -> Iterator[dict[str, Any]]:
    """Milliseconds of a step, for state 0 and for a state inside a character."""
    generator = torch.Generator().manual_seed(0)
    for batch in BATCHES:
        logits = torch.empty(batch, automaton.num_rows)
        for state in (0, 1):
            for name, run in candidates(automaton, state, logits):
                logits.normal_(generator=generator)
                best, median = repeated(run)
                yield {
                    "batch": batch,
                    "state": "between" if state == 0 else "inside",
                    "way": name,
                    "best_ms": best,
                    "median_ms": median,
                }


def measure(folder: Path, columns: int | None, languages: str) -> dict[str, Any]:
    """Everything about one tokenizer."""
    result, spellings = start_up(folder)
    num_rows = columns or spellings.num_tokens
    automatons = []
    for options in ({"languages": languages}, {"languages": languages}, *POLICIES):
        policy = parse_policy(options)
        assert policy is not None
        spent, automaton = timed(lambda policy=policy: build_automaton(spellings, policy, num_rows))
        automatons.append(automaton)
        refused = automaton.refused(0).float().mean().item()
        result[f"build {len(automatons)}: {policy.label}"] = {
            "ms": spent,
            "states": automaton.num_states,
            "classes": automaton.class_next.shape[1],
            "bytes": automaton.num_bytes,
            "refused": refused,
        }
    return {
        "tokenizer": folder.name,
        "columns": num_rows,
        **result,
        "masks": [*masks(automatons[0])],
    }


def show(result: dict[str, Any]) -> None:
    """One tokenizer's results as text."""
    print(f"\n## {result['tokenizer']}, {result['columns']:,} columns")
    for name, value in result.items():
        if isinstance(value, float):
            print(f"{name}: {value:.3f}")
        elif isinstance(value, dict):
            print(f"{name}: " + ", ".join(f"{k} {v:,.4g}" for k, v in value.items()))
    print("\n| batch | state | way | best ms | median ms |\n|---|---|---|---|---|")
    for row in result["masks"]:
        cells = (row["batch"], row["state"], row["way"])
        print("|", *(f"{c} |" for c in cells), f"{row['best_ms']:.3f} | {row['median_ms']:.3f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--columns", type=int, help="width of the logits; default: all ids")
    parser.add_argument("--languages", default="en,ko")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    results = []
    for folder in options.folders:
        results.append(measure(folder, options.columns, options.languages))
        show(results[-1])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
