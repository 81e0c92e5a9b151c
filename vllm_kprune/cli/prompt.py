"""`kprune prompt`: see what input pruning would drop from a text."""

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import typer
from rich.style import Style
from rich.text import Text

from vllm_kprune.checkpoint.model_folder import resolve_model
from vllm_kprune.cli.console import error_console, output_console, write_json
from vllm_kprune.cli.demo_model import make_demo_model
from vllm_kprune.cli.options import JsonOptions, RevisionOptions
from vllm_kprune.cli.prompt_page import write_page
from vllm_kprune.cli.typer_options import Given, with_options
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import option
from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.options import parse_prune_request
from vllm_kprune.prompt.pruner import InputPruner
from vllm_kprune.prompt.result import PrunedPiece, PrunedPrompt
from vllm_kprune.prompt.scorers import DEFAULT_SCORER, Scorer

__all__ = ["register"]

_DEMO_MODEL = "gemma-3-270m"
_MOST_BYTES = 2_000_000  # 450,000 tokens take 12 s and 770 MB
# From cold to hot, in the 256 colours that all terminals share.
_HEAT = (240, 246, 252, 229, 221, 214)
_LAYOUTS = {"code": "code", "json": "JSON", "table": "a table", "list": "a list"}
_DROPPED = Style(color="color(131)", strike=True, dim=True)


@dataclass(frozen=True, kw_only=True)
class _Input(RevisionOptions):
    file: Path | None = option(
        None, "Text to prune; standard input if none is given.", positional=True
    )
    ranker: str | None = option(
        None, "Folder or hub id of the small model that ranks.", default_text="the demo model"
    )
    query: str | None = option(None, "The question, for scorers that use it.")


@dataclass(frozen=True, kw_only=True)
class _Output(JsonOptions):
    kept: bool = option(False, "Print only the kept text, for a pipe.")
    html: Path | None = option(
        None, "Write a web page with a slider to this file; the page loads nothing else."
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prompt")(with_options(_run, _Input, Given(PruneOptions), _Output))


def _run(source: _Input, given: dict[str, Any], output: _Output) -> None:
    """Show what input pruning would drop from a text.

    Dropped parts are struck through, and the others are coloured by their importance. Without
    --keep and --target-tokens, 0.7 of the tokens are kept. If there are spans marked
    `<kprune keep="0.5">…</kprune>`, only these are pruned, as on a server.

        kprune prompt --keep 0.7 report.txt --html report.html
        kprune prompt --keep 0.5 --kept < report.txt | wc
    """
    parse_prune_request(given)  # before anything is read
    _check_files(source.file, output.html, output.json_to)
    text = _read(source.file)
    scorer = given.get("scorer", DEFAULT_SCORER)
    pruner = InputPruner(_ranker(source.ranker, source.revision), scorer=scorer)
    if "scorer" in given or source.query:
        _say_of_query(pruner.scorer, source.query)
    pruned = pruner.prune(text, query=source.query, **given)
    if output.html:
        how = f"{pruner.scorer.name}, tokens of {_name(source.ranker)}"
        title = source.file.name if source.file else "prompt"
        write_page(pruned.parts, output.html, title=title, how=how)
    if output.json_to:
        write_json(_figures(pruned), output.json_to)
    if output.kept:
        sys.stdout.write(pruned.text)
    elif output.json_to != "-":
        _show(pruned)
    if output.html:
        error_console.print(f"written: {output.html}", markup=False)


def _check_files(file: Path | None, html: Path | None, json_to: str | None) -> None:
    """No output may take the place of the text, or of the other output."""
    outputs = {"--html": html, "--json": Path(json_to) if json_to and json_to != "-" else None}
    places: dict[Path, str] = {file.resolve(): "the text to prune"} if file else {}
    for flag, path in outputs.items():
        if path is None:
            continue
        if taken := places.get(path.resolve()):
            raise KPruneError(f"{flag} {path} is {taken}; name another file")
        places[path.resolve()] = f"what {flag} writes"


def _say_of_query(scorer: Scorer, query: str | None) -> None:
    if scorer.uses_query and not query:
        error_console.print(
            f"scorer {scorer.name} without --query ranks as rarity does", markup=False
        )
    if query and not scorer.uses_query:
        error_console.print(
            f"scorer {scorer.name} does not look at --query; --scorer sentences does", markup=False
        )


def _read(file: Path | None) -> str:
    name = str(file) if file else "standard input"
    try:
        if file is None:
            # One byte more than allowed tells a text that is too long from one that just fits.
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with file.open("rb") as stream:
                data = stream.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise KPruneError(f"{name} has more than {_MOST_BYTES // 1_000_000} MB of text")
        return data.decode("utf-8")
    except OSError as error:
        raise KPruneError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise KPruneError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from None


def _ranker(model: str | None, revision: str | None) -> Path:
    if revision is not None and (model is None or Path(model).expanduser().is_dir()):
        raise KPruneError("--revision is of a model on the hub; give its id with --ranker")
    return make_demo_model(_DEMO_MODEL) if model is None else resolve_model(model, revision)


def _name(ranker: str | None) -> str:
    """A hub id as it is, of a folder its last part."""
    path = Path(ranker or _DEMO_MODEL).expanduser()
    return path.resolve().name if path.is_dir() else str(path)


def _figures(pruned: PrunedPrompt) -> dict[str, Any]:
    return {
        "tokens_before": pruned.tokens_before,
        "tokens_after": pruned.tokens_after,
        "text": pruned.text,
        "left_whole": [part.layout for part in pruned.segments],
        "segments": [
            [asdict(piece) for piece in segment.list_pieces()] for segment in pruned.segments
        ],
    }


def _show(pruned: PrunedPrompt) -> None:
    before, after = pruned.tokens_before, pruned.tokens_after
    output_console.print(Text.assemble(*_styled(pruned)), soft_wrap=True)
    share = after / before if before else 1.0
    error_console.print(f"{before:,} tokens -> {after:,} ({share:.0%})", markup=False)
    for layout in sorted({part.layout for part in pruned.segments if part.layout}):
        error_console.print(
            f"left whole: {_LAYOUTS[layout]}; --prune-layout prunes it", markup=False
        )
    if any(part.exceeds for part in pruned.segments):
        error_console.print(
            "more is kept than asked for: text that must stay, or a single piece, is larger",
            markup=False,
        )


def _styled(pruned: PrunedPrompt) -> Iterator[tuple[str, Style] | str]:
    coloured = output_console.is_terminal and not output_console.no_color
    for part in pruned.parts:
        if isinstance(part, str):
            yield part
            continue
        if coloured:
            yield from map(_coloured, part.list_pieces())
            continue
        for kept, pieces in groupby(part.list_pieces(), lambda piece: piece.kept):
            text = "".join(piece.text for piece in pieces)
            yield text if kept else f"[-{text}-]"


def _coloured(piece: PrunedPiece) -> tuple[str, Style]:
    # A heat of 1.0 would be one past the last colour.
    heat = _HEAT[min(int(piece.heat * len(_HEAT)), len(_HEAT) - 1)]
    return piece.text, Style(color=f"color({heat})") if piece.kept else _DROPPED
