"""`report.html`: one file that loads nothing, made from the parts in `page_parts/` and the report.

The report is embedded as JSON, and the script writes it into the page as text only. Should an
answer ever slip through, the page's content security policy still allows nothing but this style and
this script, by their hashes: no request and no other script. The script draws the charts as SVG, in
percentages and in colours of the style sheet, so that they follow the width and the dark mode. Vega
would add a megabyte and do neither.
"""

import json
import re
from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path

from vllm_kprune.compare.report.document import Report
from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.folders import new_file

__all__ = ["page", "write_page"]

_SCRIPTS = (
    "dom.js",
    "scales.js",
    "charts.js",
    "sides.js",
    "suites.js",
    "examples.js",
    "about.js",
    "main.js",
)


def write_page(report: Report, path: Path) -> None:
    """Write the page to a temporary name and rename it; `KPruneError` if that fails."""
    try:
        with new_file(path) as stream:
            stream.write(page(report).encode("utf-8"))
    except OSError as error:
        raise KPruneError(f"page {path} cannot be written: {error.strerror}") from None


def page(report: Report) -> str:
    """The page of a report, as HTML."""
    style = _part("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_part, _SCRIPTS)) + "})();\n"
    parts = {
        "title": escape(_title(report)),
        "policy": f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "report": _embedded(report),
    }
    # In one pass, so that no placeholder inside a part is replaced.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html"))


def _title(report: Report) -> str:
    models = [endpoint.model for endpoint in report.endpoints]
    return " against ".join(reversed(models)) or "kprune compare"


def _embedded(report: Report) -> str:
    """JSON that no text inside it can end.

    `<` and `&` are escaped, as are the two line separators that JSON allows and old scripts do not.
    """
    text = json.dumps(report.model_dump(mode="json"), ensure_ascii=False, allow_nan=False)
    # Outside texts, JSON has none of these characters, so every escape lands inside a text.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _part(name: str) -> str:
    folder = files("vllm_kprune.compare.report").joinpath("page_parts")
    return folder.joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    # Of the text between the tags. A space added beside a placeholder in page.html would make the
    # browser refuse the style or the script.
    return f"'sha256-{b64encode(sha256(content.encode('utf-8')).digest()).decode('ascii')}'"
