"""`kprune prompt`: see what input pruning would drop from a text."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.style import Style
from rich.text import Text

from vllm_kprune.checkpoint.base import resolve_model
from vllm_kprune.cli.console import error_console, output_console, write_json
from vllm_kprune.cli.demo_model import make_demo_model
from vllm_kprune.cli.options import JsonOption, RevisionOption
from vllm_kprune.cli.prompt_page import write_page
from vllm_kprune.errors import KPruneError
from vllm_kprune.prompt.options import parse_prune_request
from vllm_kprune.prompt.pruner import InputPruner
from vllm_kprune.prompt.result import PrunedPrompt
from vllm_kprune.prompt.scorers import DEFAULT_SCORER, SCORERS, Scorer

__all__ = ["register"]

_DEMO_MODEL = "gemma-3-270m"
_MOST_BYTES = 20_000_000
# From cold to hot, as colours of the 256 that terminals have in common.
_HEAT = (240, 246, 252, 229, 221, 214)
_DROPPED = Style(color="color(131)", strike=True, dim=True)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prompt")(_run)


def _run(
    file: Annotated[
        Path | None, typer.Argument(help="Text to prune; standard input if none.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Share of the tokens to keep (0.7 if nothing is said).")
    ] = None,
    target_tokens: Annotated[
        int | None,
        typer.Option(
            help="Keep at most this many tokens (of each marked span), instead of a share."
        ),
    ] = None,
    ranker: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id of the small model that ranks; the demo model if none."
        ),
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help=f"How tokens are ranked: {', '.join(SCORERS)}.")
    ] = None,
    unit: Annotated[
        str, typer.Option(help="What is kept or dropped as a whole: token, word.")
    ] = "token",
    query: Annotated[
        str | None, typer.Option(help="The question, for scorers that look from it.")
    ] = None,
    force: Annotated[
        list[str], typer.Option("--force-token", help="Text that always stays; repeat for several.")
    ] = [],  # noqa: B006 - Typer copies it
    force_digits: Annotated[bool, typer.Option("--force-digits", help="Numbers stay.")] = False,
    revision: RevisionOption = None,
    kept_only: Annotated[
        bool, typer.Option("--kept", help="Print the kept text alone, to pipe it on.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a web page with a slider; it loads nothing.")
    ] = None,
    json_to: JsonOption = None,
) -> None:
    """Show what input pruning would drop from a text.

    Dropped parts are struck through, the others coloured by their importance. Spans marked
    `<kprune keep="0.5">…</kprune>` are pruned alone, as a server does.

        kprune prompt --keep 0.7 report.txt --html report.html
        kprune prompt --keep 0.5 --kept < report.txt | wc
    """
    options = _options(
        keep=keep,
        target_tokens=target_tokens,
        unit=unit,
        force_tokens=force,
        force_digits=force_digits,
        scorer=scorer,
    )
    _check_files(file, html, json_to)
    text = _read(file)
    pruner = InputPruner(_ranker(ranker, revision), scorer=scorer or DEFAULT_SCORER)
    _say_of_query(pruner.scorer, query)
    pruned = pruner.prune(text, query=query, **options)
    if html:
        how = f"{pruner.scorer.name}, tokens of {_name(ranker)}"
        write_page(pruned.parts, html, title=file.name if file else "prompt", how=how)
    if json_to:
        write_json(_figures(pruned), json_to)
    if kept_only:
        sys.stdout.write(pruned.text)
    elif json_to != "-":
        _show(pruned)
    if html:
        error_console.print(f"written: {html}", markup=False)


def _options(**given: Any) -> Any:
    """What was given, checked as a server checks it, before anything is read."""
    asked = {name: value for name, value in given.items() if value is not None}
    parse_prune_request(asked)
    return asked


def _check_files(file: Path | None, html: Path | None, json_to: str | None) -> None:
    """No output may take the place of the text, or of the other output."""
    outputs = {"--html": html, "--json": Path(json_to) if json_to and json_to != "-" else None}
    places: dict[Path, str] = {file.resolve(): "the text to prune"} if file else {}
    for option, path in outputs.items():
        if path is None:
            continue
        if taken := places.get(path.resolve()):
            raise KPruneError(f"{option} {path} is {taken}; name another file")
        places[path.resolve()] = f"what {option} writes"


def _say_of_query(scorer: Scorer, query: str | None) -> None:
    if scorer.uses_query and not query:
        error_console.print(
            f"scorer {scorer.name} without --query ranks as {DEFAULT_SCORER} does", markup=False
        )
    if query and not scorer.uses_query:
        error_console.print(
            f"scorer {scorer.name} does not look at --query; --scorer question does", markup=False
        )


def _read(file: Path | None) -> str:
    name = str(file) if file else "standard input"
    try:
        if file is None:
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
        "segments": [
            [asdict(piece) for piece in segment.list_pieces()] for segment in pruned.segments
        ],
    }


def _show(pruned: PrunedPrompt) -> None:
    before, after = pruned.tokens_before, pruned.tokens_after
    output_console.print(Text.assemble(*_styled(pruned)), soft_wrap=True)
    share = after / before if before else 1.0
    error_console.print(f"{before:,} tokens -> {after:,} ({share:.0%})", markup=False)


def _styled(pruned: PrunedPrompt) -> Iterator[tuple[str, Style] | str]:
    coloured = output_console.is_terminal and not output_console.no_color
    for part in pruned.parts:
        if isinstance(part, str):
            yield part
            continue
        for piece in part.list_pieces():
            if coloured:
                heat = _HEAT[min(int(piece.heat * len(_HEAT)), len(_HEAT) - 1)]
                yield piece.text, Style(color=f"color({heat})") if piece.kept else _DROPPED
            else:
                yield piece.text if piece.kept else f"[-{piece.text}-]"
