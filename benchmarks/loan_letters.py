"""How often a guard refuses real text of its own language, and whose text it lets through.

.venv/bin/python benchmarks/loan_letters.py KPRUNE_DATA

For each language of another script than Latin: the share of sentences with a character that the
guard of this language refuses, for each value of its option `latin`, and the characters that the
default refuses most often. Then the share of sentences in languages of Latin script that pass the
guard of Korean. The text is XQuAD, GNOME's user documentation, and for Korean KLUE; the folder
KPRUNE_DATA has it as `xquad/xquad.LANGUAGE.json.gz`, `calib-gnome-user-docs/LANGUAGE.txt.gz`, and
`klue/ner_dp_dev_sentences.txt.gz`. Every sentence counts once. Writes two Markdown tables.
"""

import argparse
import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from vllm_kprune.guard.characters import allowed_characters
from vllm_kprune.guard.policy import GuardPolicy, Latin
from vllm_kprune.profile import LANGUAGES

LEVELS: tuple[Latin, ...] = get_args(Latin)
SOURCES = ("xquad/xquad.{}.json.gz", "calib-gnome-user-docs/{}.txt.gz")
KOREAN = "klue/ner_dp_dev_sentences.txt.gz"
_SENTENCE_END = re.compile(r"(?<=[.!?؟।。！？])\s+|\n")


def sentences(data: Path, language: str) -> list[str]:
    """The sentences of a language, each once."""
    names = [source.format(language) for source in SOURCES] + [KOREAN] * (language == "ko")
    found: dict[str, None] = {}
    for path in (data / name for name in names):
        if path.is_file():
            text = gzip.decompress(path.read_bytes()).decode()
            parts = strings(json.loads(text)) if ".json" in path.suffixes else [text]
            found |= dict.fromkeys(s for part in parts for s in _SENTENCE_END.split(part) if s)
    return list(found)


def strings(value: Any) -> Iterator[str]:
    """Every text in parsed JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def refused(language: str, latin: Latin, lines: Sequence[str]) -> tuple[float, Counter[str]]:
    """Percent of the lines that the guard of a language refuses, and by how many of them each
    character."""
    table = allowed_characters(GuardPolicy(languages=(language,), latin=latin))
    characters: Counter[str] = Counter()
    count = 0
    for line in lines:
        bad = {character for character in line if not table[ord(character)]}
        characters.update(sorted(bad))
        count += bool(bad)
    return 100 * count / len(lines), characters


def tables(texts: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The lines of both tables."""
    head = " | ".join(f"`latin: {level}`" for level in LEVELS)
    yield f"| language | sentences | {head} | refused by the default |\n|---|---|{'---|' * 4}"
    default = GuardPolicy().latin
    for code, lines in texts.items():
        if "Latin" not in LANGUAGES[code].scripts:
            found = {level: refused(code, level, lines) for level in LEVELS}
            shares = " | ".join(f"{found[level][0]:.2f} %" for level in LEVELS)
            top = " ".join(character for character, _ in found[default][1].most_common(8))
            yield f"| {code} | {len(lines):,} | {shares} | {top} |"
    yield f"\n| language | sentences | {head} |\n|---|---|{'---|' * 3}"
    for code, lines in texts.items():
        if "Latin" in LANGUAGES[code].scripts:
            shares = " | ".join(f"{100 - refused('ko', level, lines)[0]:.1f} %" for level in LEVELS)
            yield f"| {code} | {len(lines):,} | {shares} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    data: Path = parser.parse_args().data
    texts = {code: lines for code in LANGUAGES if (lines := sentences(data, code))}
    sys.stdout.writelines(f"{line}\n" for line in tables(texts))


if __name__ == "__main__":
    main()
