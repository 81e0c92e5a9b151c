"""Count the genres of a profile: makes `vllm_kprune/vocabulary/words/genre-*.json.zst`.

python packaging/words/make_genres.py DOWNLOADS [GENRE...] [--measured FOLDER]

Needs what make_tables.py needs, wordfreq and pypdfium2. The packages are listed in `genres.yaml`,
in two halves: tables are counted on one; with --measured, texts of the other are written instead,
one JSON string a line, for benchmarks/selection.py.

In each text a piece counts by the square root of how often it occurs: names repeat within a file,
and would outweigh what files have in common.
"""

import argparse
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from genre_made import dates, hanja_words, noise, traces
from genre_texts import GENRES, source_code
from make_tables import HERE, Rates, fetch, pieces_of, write_json, write_table

CHARACTERS = 9_000_000
MEASURED_CHARACTERS = 3_000_000
PART = 6_000  # characters; a longer text is cut


def sample(texts: Iterable[str], most: int) -> Iterator[str]:
    """Parts of texts in a random order, up to a number of characters."""
    found, read = [], 0
    for text in texts:
        found.append(text)
        read += len(text)
        if read > most + most // 3:
            break
    random.Random(1).shuffle(found)
    for text in found:
        for at in range(0, min(len(text), 10 * PART), PART):
            yield text[at : at + PART]
            most -= PART
        if most < 0:
            return


def count(texts: Iterable[str]) -> Rates:
    """Pieces of texts with the sums of their damped counts."""
    rates: Rates = defaultdict(float)
    for text in texts:
        for piece, times in Counter(pieces_of(text)).items():
            rates[piece] += math.sqrt(times)
    return rates


def text_genres(
    half: Path, code: dict[str, dict[str, Any]], seed: int
) -> dict[str, Callable[[], Iterable[str]]]:
    """Genre -> its texts in one half of the packages."""

    def of_code(kind: dict[str, Any]) -> Callable[[], Iterable[str]]:
        folders = [half / name for name in kind["packages"]]
        return lambda: source_code(folders, tuple(kind["endings"].split()))

    def of_packages(read: Callable[[Path], Iterable[str]]) -> Callable[[], Iterable[str]]:
        return lambda: read(half)

    return {
        **{name: of_code(kind) for name, kind in code.items()},
        **{name: of_packages(read) for name, read in GENRES.items()},
        "traces": lambda: traces(half, seed),
        "data": lambda: noise(seed),
    }


def main() -> None:
    """Fetch, count and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("downloads", type=Path)
    parser.add_argument("genres", nargs="*")
    parser.add_argument("--measured", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    known = yaml.safe_load((HERE / "genres.yaml").read_text(encoding="utf-8"))
    half = "measured" if options.measured else "counted"
    folder = options.downloads / half
    fetch(known[half], folder)
    texts = text_genres(folder, known["source_code"], 8 if options.measured else 7)
    for name in options.genres or [*texts, *([] if options.measured else ["dates", "hanja"])]:
        if options.measured:
            lines = (
                json.dumps(text, ensure_ascii=False)
                for text in sample(texts[name](), MEASURED_CHARACTERS)
            )
            options.measured.mkdir(parents=True, exist_ok=True)
            path = options.measured / f"{name}.jsonl"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(path, flush=True)
        elif name == "hanja":
            write_json("hanja-words", hanja_words(folder))
        else:
            rates = dates() if name == "dates" else count(sample(texts[name](), CHARACTERS))
            write_table(f"genre-{name}", per_million(rates), known["size"])


def per_million(rates: Rates) -> Rates:
    """The same rates per million pieces."""
    scale = 1e6 / sum(rates.values())
    return defaultdict(float, {piece: rate * scale for piece, rate in rates.items()})


if __name__ == "__main__":
    main()
