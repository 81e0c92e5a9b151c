"""The web page of `kprune prompt --html`: one file that loads nothing, with a slider.

The text is hostile: it is escaped, and no script reads it.
"""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.result import PrunedPiece, PrunedSegment
from vllm_kprune.storage.folders import new_file

__all__ = ["page", "write_page"]


def write_page(parts: Sequence[str | PrunedSegment], target: Path, *, title: str, how: str) -> None:
    """Write the page beside its place and rename it; `KPruneError` if that cannot be."""
    try:
        with new_file(target) as stream:
            stream.write(page(parts, title=title, how=how).encode("utf-8"))
    except OSError as error:
        raise KPruneError(f"--html {target} cannot be written: {error.strerror}") from None


def page(parts: Sequence[str | PrunedSegment], *, title: str, how: str) -> str:
    """HTML of a text in parts, strings being those that are left alone; `how` it was ranked."""
    template = files("vllm_kprune.cli").joinpath("prompt_page.html").read_text(encoding="utf-8")
    pruned = [part for part in parts if isinstance(part, PrunedSegment)]
    before = sum(part.tokens_before for part in pruned)
    after = sum(part.tokens_after for part in pruned)
    share = after / before if before else 1.0
    # What is put in is not searched again, so a `$` in the text is no placeholder.
    return Template(template).substitute(
        title=escape(title),
        how=escape(how),
        before=f"{before:,}",
        after=f"{after:,}",
        share=f"{share:.0%}",
        percent=round(100 * share),
        body="".join(_html(part) for part in parts),
    )


def _html(part: str | PrunedSegment) -> str:
    if isinstance(part, str):
        return f'<span class="plain">{escape(part)}</span>'
    return "".join(_span(piece) for piece in part.list_pieces())


def _span(piece: PrunedPiece) -> str:
    classes = "p" + (" f" if piece.forced else "") + ("" if piece.kept else " d")
    score = "" if piece.score is None else f"score {piece.score:.4g}, "
    return (
        f'<span class="{classes}" style="--h:{piece.heat:.3f}" data-k="{piece.kept_from:.6f}" '
        f'data-n="{piece.tokens}" title="{score}kept from {piece.kept_from:.0%} on">'
        f"{escape(piece.text)}</span>"
    )
