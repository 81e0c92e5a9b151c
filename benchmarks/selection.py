"""What profiles keep of tokenizers, and what that costs on text that is not evidence.

.venv/bin/python benchmarks/selection.py TOKENIZER_FOLDER... --profile enko --profile enkozh \
    --text en=FILE --text ko=FILE --text code=FOLDER [--reduction 0.6 | --coverage 0.998]

Prints a Markdown row for each tokenizer and profile: tokens kept, extra tokens for each name of
text, unreachable tokens, and lines that break law 1 (covered text is unchanged) or law 2 (nothing
is lost). Several --text may share a name. A folder stands for its source files; of a .json file the
strings are read. `--lines N` bounds the lines of each text; the long form of this benchmark has a
million.
"""

import argparse
import gzip
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vllm_kprune.checkpoint.plan import TokenizerPlan, make_tokenizer_plan
from vllm_kprune.profile import load_profile
from vllm_kprune.tokenizer.bpe import parse_tokenizer, read_tokenizer
from vllm_kprune.tokenizer.encoder import load_encoder
from vllm_kprune.tokenizer.prune import prune_tokenizer
from vllm_kprune.tokenizer.reach import unreachable_ids
from vllm_kprune.vocabulary.corpus import read_corpus

CODE = {".py", ".js", ".ts", ".c", ".cpp", ".h", ".rs", ".go", ".java", ".sql", ".sh"}
BATCH = 2000


def lines_of(path: Path) -> Iterator[str]:
    """The texts of a file or of a folder of code."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix in CODE and file.is_file():
                yield file.read_text(encoding="utf-8", errors="replace")
    elif ".json" in path.suffixes:
        content = path.read_bytes()
        yield from strings(
            json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
        )
    else:
        yield from read_corpus(path)


def strings(value: Any) -> Iterator[str]:
    """Every string of parsed JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


class Pair:
    """An original tokenizer and the one that a plan makes of it."""

    def __init__(self, plan: TokenizerPlan, folder: Path) -> None:
        self.kept = plan.selection.kept_ids
        self.reasons = plan.selection.reasons
        self.data = prune_tokenizer(plan.base.tokenizer, self.kept)
        self.original = load_encoder(folder)
        self.pruned = Tokenizer.from_str(json.dumps(self.data, ensure_ascii=False))
        self.new_ids = {old: new for new, old in enumerate(self.kept)}
        self.violations = self.lines = 0

    def extra(self, texts: Iterator[str]) -> float:
        """Share of extra tokens; also counts the lines that break law 1 or 2."""
        before = after = 0
        while batch := list(itertools.islice(texts, BATCH)):
            old = self.original.encode_batch_fast(batch, add_special_tokens=False)
            new = self.pruned.encode_batch_fast(batch, add_special_tokens=False)
            back = self.pruned.decode_batch([e.ids for e in new], skip_special_tokens=False)
            same = self.original.decode_batch([e.ids for e in old], skip_special_tokens=False)
            self.lines += len(batch)
            for a, b, decoded, expected in zip(old, new, back, same, strict=True):
                image = [self.new_ids.get(i) for i in a.ids]
                self.violations += decoded != expected or (None not in image and image != b.ids)
                before += len(a.ids)
                after += len(b.ids)
        return after / before - 1

    def dead(self, folder: Path) -> str:
        """Unreachable tokens, and merge steps that the original never produces either, as text."""
        parsed, base = parse_tokenizer(self.data), read_tokenizer(folder)
        ids = [new for new, letter in enumerate(self.reasons) if letter not in "sb"]
        found = {self.kept[new] for new in unreachable_ids(parsed, self.pruned, ids)}
        steps = set(unreachable_ids(base, self.original, sorted(found)))
        return f"{len(found - steps)}" + (f" (+{len(steps)} steps)" if steps else "")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--profile", action="append", default=[])
    parser.add_argument("--text", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--lines", type=int, default=None)
    parser.add_argument("--coverage", type=float)
    parser.add_argument("--reduction", type=float, help="drop this share of the tokens")
    options = parser.parse_args()
    texts: dict[str, list[Path]] = {}
    for name, path in (entry.split("=", 1) for entry in options.text):
        texts.setdefault(name, []).append(Path(path))
    names = " | ".join(texts)
    print(f"| tokenizer | profile | kept | reduction | {names} | unreachable | broken | seconds |")
    print("|---" * (7 + len(texts)) + "|")
    for folder, profile in itertools.product(options.folders, options.profile or ["enko"]):
        size = None
        if options.reduction is not None:
            size = round(len(read_tokenizer(folder).tokens) * (1 - options.reduction))
        started = time.perf_counter()
        wanted = load_profile(profile, coverage=options.coverage, target_size=size)
        plan = make_tokenizer_plan(str(folder), wanted)
        seconds = time.perf_counter() - started
        pair = Pair(plan, folder)
        costs = [
            pair.extra(
                itertools.islice(itertools.chain.from_iterable(map(lines_of, paths)), options.lines)
            )
            for paths in texts.values()
        ]
        kept, whole = len(pair.kept), len(plan.base.tokenizer.tokens)
        cells = " | ".join(f"{cost:+.2%}" for cost in costs)
        broken = f"{pair.violations} of {pair.lines:,}"
        print(
            f"| {folder.name} | {profile} | {kept:,} of {whole:,} | {1 - kept / whole:.1%} | "
            f"{cells} | {pair.dead(folder)} | {broken} | {seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
