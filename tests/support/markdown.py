"""Markdown as the documentation's tests read it: headings, links, blocks and spans of code, tables.

Only what our own pages use: fenced blocks, ATX headings, inline links. No nesting, no references.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def name_of(path: Path) -> str:
    """The path as it is shown in a test's name."""
    return str(path.relative_to(ROOT))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> Iterator[str]:
    """The fenced blocks of code in one of `languages`."""
    yield from (body for language, body in _FENCE.findall(text) if language in languages)


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return _FENCE.sub("", text)


def spans(text: str) -> list[str]:
    """The inline code in a text."""
    return _SPAN.findall(prose(text))


def links(text: str) -> list[str]:
    """The targets of links and pictures; code is left out."""
    return _LINK.findall(_SPAN.sub("", prose(text)))


def anchors(text: str, *, site: bool) -> set[str]:
    """The anchors of a page's headings: as the site generator makes them, or the code host."""
    slug = _site_slug if site else _host_slug
    return {slug(_SPAN.sub(r"\1", heading)) for heading in _HEADING.findall(prose(text))}


def _host_slug(heading: str) -> str:
    """As GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _site_slug(heading: str) -> str:
    """As Python-Markdown's `toc` does."""
    ascii_only = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())


def first_cells(text: str, heading: str) -> Iterator[str]:
    """The first cell of each row of the tables under a `##` heading."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| ") and not line.startswith("|--"):
            yield re.split(r"(?<!\\)\|", line)[1].strip()
