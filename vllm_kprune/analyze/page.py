"""The web page of an analysis: one file that loads nothing and has no script.

Names of models and files come from outside. They are escaped, and the page's content security
policy allows nothing but its own style.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path

from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.folders import new_file

__all__ = ["Section", "check_page", "page", "write_page"]


@dataclass(frozen=True)
class Section:
    """A heading, a text that says how to read what follows, and charts or tables as HTML."""

    title: str
    note: str
    charts: Sequence[str]


def check_page(path: Path) -> None:
    """Raise `KPruneError`, before anything is measured, if a page cannot be written to `path`."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise KPruneError(f"--html {path}: expected the name of a file in a folder that exists")


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page beside its place and rename it; `KPruneError` if that cannot be."""
    try:
        with new_file(path) as stream:
            stream.write(page(title, lead, sections).encode("utf-8"))
    except OSError as error:
        raise KPruneError(f"--html {path} cannot be written: {error.strerror}") from None


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page as HTML; `lead` says what was measured, with which text and settings."""
    style = files("vllm_kprune.analyze").joinpath("page.css").read_text(encoding="utf-8")
    digest = b64encode(sha256(style.encode()).digest()).decode("ascii")
    body = "".join(map(_section, sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)} - kprune analyze</title>\n<style>{style}</style>\n</head>\n"
        f'<body>\n<main>\n<h1>{escape(title)}</h1>\n<p class="soft">{escape(lead)}</p>\n'
        f"{body}</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    charts = "\n".join(section.charts)
    return (
        f"<section>\n<h2>{escape(section.title)}</h2>\n<p>{escape(section.note)}</p>\n"
        f'<div class="charts">\n{charts}\n</div>\n</section>\n'
    )
