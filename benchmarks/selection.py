"""What profiles keep of tokenizers, and what that costs on text that is not evidence.

.venv/bin/python benchmarks/selection.py TOKENIZER_FOLDER... --profile enko --profile enkozh \
    --text en=FILE --text ko=FILE --text code=FOLDER [--reduction 0.6 | --coverage 0.998]

Prints a Markdown row for each tokenizer and profile: tokens kept, extra tokens for each name of
text, unreachable tokens, and lines that break law 1 (covered text is unchanged) or law 2 (nothing
is lost). Several --text may share a name. A folder stands for its source files; of a .json file the
strings are read. `--lines N` bounds the lines of each text; the long form of this benchmark has a
million: `--by-line` takes the files of a folder line by line, and `--state FILE` remembers after
every 20,000 lines how far each tokenizer and profile is, so that the same command goes on where it
was stopped. Memory does not grow with the number of lines.
"""

import argparse
import gzip
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vllm_kprune.checkpoint.plan import TokenizerPlan, make_tokenizer_plan
from vllm_kprune.profile import load_profile
from vllm_kprune.storage.folders import new_file
from vllm_kprune.tokenizer.bpe import parse_tokenizer, read_tokenizer
from vllm_kprune.tokenizer.encoder import load_encoder
from vllm_kprune.tokenizer.prune import prune_tokenizer
from vllm_kprune.tokenizer.reach import unreachable_ids
from vllm_kprune.vocabulary.corpus import read_corpus

CODE = {".py", ".js", ".ts", ".c", ".cpp", ".h", ".rs", ".go", ".java", ".sql", ".sh"}
BATCH = 2000
REMEMBERED = 20_000  # lines


def lines_of(path: Path, by_line: bool = False) -> Iterator[str]:
    """The texts of a file or of a folder of code."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix in CODE and file.is_file():
                text = file.read_text(encoding="utf-8", errors="replace")
                yield from text.splitlines(keepends=True) if by_line else [text]
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


@dataclass
class Count:
    """What was counted on the first `lines` of a text."""

    lines: int = 0
    before: int = 0
    after: int = 0
    violations: int = 0


class State:
    """What was counted so far, in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        known = path is not None and path.is_file()
        self.counts: dict[str, dict[str, int]] = json.loads(path.read_bytes()) if known else {}

    def of(self, key: str) -> Count:
        """The count of a tokenizer, profile and text; a new one if it is not known."""
        return Count(**self.counts.get(key, {}))

    def save(self, key: str, count: Count) -> None:
        """Remember a count."""
        self.counts[key] = asdict(count)
        if self.path is not None:
            with new_file(self.path) as stream:
                stream.write(json.dumps(self.counts).encode())


class Pair:
    """An original tokenizer and the one that a plan makes of it."""

    def __init__(self, plan: TokenizerPlan, folder: Path) -> None:
        self.kept = plan.selection.kept_ids
        self.reasons = plan.selection.reasons
        self.data = prune_tokenizer(plan.base.tokenizer, self.kept)
        self.original = load_encoder(folder)
        self.pruned = Tokenizer.from_str(json.dumps(self.data, ensure_ascii=False))
        self.new_ids = {old: new for new, old in enumerate(self.kept)}

    def key(self, name: str, paths: Sequence[Path], lines: int | None) -> str:
        """Names what is counted: other tokens, or a changed text, are counted anew."""
        sizes = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
        whole = json.dumps([self.original.to_str(), self.kept, sizes, lines])
        return f"{name} {hashlib.sha256(whole.encode()).hexdigest()[:32]}"

    def add(self, texts: Iterator[str], count: Count, tell: Callable[[Count], None]) -> None:
        """Count tokens, and the lines that break law 1 or 2, from where `count` stands."""
        texts = itertools.islice(texts, count.lines, None)
        while batch := list(itertools.islice(texts, BATCH)):
            old = self.original.encode_batch_fast(batch, add_special_tokens=False)
            new = self.pruned.encode_batch_fast(batch, add_special_tokens=False)
            back = self.pruned.decode_batch([e.ids for e in new], skip_special_tokens=False)
            same = self.original.decode_batch([e.ids for e in old], skip_special_tokens=False)
            count.lines += len(batch)
            for a, b, decoded, expected in zip(old, new, back, same, strict=True):
                image = [self.new_ids.get(i) for i in a.ids]
                broken = decoded != expected or (None not in image and image != b.ids)
                count.violations += broken
                count.before += len(a.ids)
                count.after += len(b.ids)
            if count.lines % REMEMBERED == 0:
                tell(count)
        tell(count)

    def dead(self, folder: Path) -> str:
        """Unreachable tokens, and merge steps that the original never produces either, as text."""
        parsed, base = parse_tokenizer(self.data), read_tokenizer(folder)
        ids = [new for new, letter in enumerate(self.reasons) if letter not in "sb"]
        found = {self.kept[new] for new in unreachable_ids(parsed, self.pruned, ids)}
        steps = set(unreachable_ids(base, self.original, sorted(found)))
        return f"{len(found - steps)}" + (f" (+{len(steps)} steps)" if steps else "")


def count_texts(
    pair: Pair, texts: Mapping[str, list[Path]], state: State, by_line: bool, most: int | None
) -> list[Count]:
    """The counts of each text; those that `state` has are not made again."""
    counts = []
    for name, paths in texts.items():
        key = pair.key(name, paths, most) + (" by line" if by_line else "")
        count, began = state.of(key), time.perf_counter()
        first = count.lines

        def tell(
            count: Count, key: str = key, name: str = name, first: int = first, began: float = began
        ) -> None:
            state.save(key, count)
            rate = (count.lines - first) / (time.perf_counter() - began)
            left = (
                f", {(most - count.lines) / rate / 60:.0f} min left at most"
                if most and rate
                else ""
            )
            print(f"{name}: {count.lines:,} lines{left}", file=sys.stderr)

        lines = itertools.chain.from_iterable(lines_of(path, by_line) for path in paths)
        pair.add(itertools.islice(lines, most), count, tell)
        counts.append(count)
    return counts


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--profile", action="append", default=[])
    parser.add_argument("--text", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--lines", type=int, default=None)
    parser.add_argument("--by-line", action="store_true", help="each line of a folder is a text")
    parser.add_argument("--state", type=Path, help="remember here how far the counting is")
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
        counts = count_texts(pair, texts, State(options.state), options.by_line, options.lines)
        kept, whole = len(pair.kept), len(plan.base.tokenizer.tokens)
        cells = " | ".join(f"{one.after / max(one.before, 1) - 1:+.2%}" for one in counts)
        broken = f"{sum(c.violations for c in counts)} of {sum(c.lines for c in counts):,}"
        print(
            f"| {folder.name} | {profile} | {kept:,} of {whole:,} | {1 - kept / whole:.1%} | "
            f"{cells} | {pair.dead(folder)} | {broken} | {seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
