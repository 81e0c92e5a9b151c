"""The options of `kprune compare`, in groups: declared once, with their help, for Typer."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "AccuracyDataOption",
    "BatchOption",
    "BenchmarkOption",
    "CometOption",
    "ConcurrencyOption",
    "FailOnOption",
    "FreshOption",
    "InputDataOption",
    "JsonReportOption",
    "KeepOption",
    "LanguageOption",
    "LatencyTokensOption",
    "LimitOption",
    "MaxTokensOption",
    "OriginalFolderOption",
    "OriginalModelOption",
    "OriginalOption",
    "OutputOption",
    "PrunedFolderOption",
    "PrunedModelOption",
    "PrunedOption",
    "RoundsOption",
    "SamplesOption",
    "SeedOption",
    "SuiteOption",
    "TasksOption",
    "TimeoutOption",
    "TranslationOption",
]


def _who(help: str, *names: str, **rules: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Endpoints", **rules)


def _what(help: str, *names: str, **rules: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="What is measured", **rules)


def _data(help: str, *, folder: bool) -> Any:
    return typer.Option(
        help=help,
        exists=True,
        file_okay=not folder,
        dir_okay=folder,
        rich_help_panel="Your data",
    )


def _out(help: str, *names: str, **rules: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Report", **rules)


OriginalOption = Annotated[str, _who("The original model's server, with or without /v1.")]
PrunedOption = Annotated[str, _who("The pruned model's server.")]
OriginalModelOption = Annotated[
    str | None, _who("Name of the model there; by default the only one that is served.")
]
PrunedModelOption = Annotated[str | None, _who("The same for the pruned model.")]
OriginalFolderOption = Annotated[
    Path | None,
    _who(
        "Folder of the model, for its size on disk and for a comparison token by token; vLLM on "
        "this machine tells it.",
        exists=True,
        file_okay=False,
    ),
]
PrunedFolderOption = Annotated[
    Path | None,
    _who("The same for the pruned model, or its overlay.", exists=True, file_okay=False),
]
ConcurrencyOption = Annotated[int, _who("Requests at a time for each endpoint.", min=1, max=256)]
TimeoutOption = Annotated[float, _who("Seconds that one request may take.", min=1)]

SuiteOption = Annotated[
    list[str] | None,
    _what("What to measure (all by default; see --list); repeat for several.", "--suite", "-s"),
]
LimitOption = Annotated[
    int | None, _what("At most so many items in each suite, drawn by --seed.", min=1)
]
LanguageOption = Annotated[
    list[str] | None,
    _what("Languages to ask and answer in (ko and en by default); repeat for several."),
]
MaxTokensOption = Annotated[int, _what("Longest answer, in tokens.", min=1)]
SamplesOption = Annotated[int, _what("stability: answers to each prompt at T=1.", min=1, max=100)]
BatchOption = Annotated[
    list[int] | None,
    _what(
        "latency: requests at a time (1 and 8 by default), the main figure's first; repeat for "
        "several.",
        min=1,
        max=256,
    ),
]
RoundsOption = Annotated[int, _what("latency: rounds of each batch.", min=1)]
LatencyTokensOption = Annotated[int, _what("latency: tokens of an answer.", min=2)]
TasksOption = Annotated[
    list[str] | None,
    _what(
        "accuracy: a preset (general, culture, instructions, local) or a task of lm-eval; repeat "
        "for several."
    ),
]
KeepOption = Annotated[
    list[float] | None,
    _what(
        "input: share of a prompt that is kept (0.9, 0.8, 0.7 by default); repeat for several.",
        min=0.05,
        max=0.99,
    ),
]
CometOption = Annotated[str | None, _what("translation: a COMET model, by name or path.")]
SeedOption = Annotated[int, _what("Draws items, orders and samples.", min=0)]

BenchmarkOption = Annotated[
    Path | None,
    _data(
        "stability: folder with the Language Confusion Benchmark's CSV files, asked beside "
        "kprune's own prompts.",
        folder=True,
    ),
]
TranslationOption = Annotated[
    list[Path] | None,
    _data("translation: TSV (with a header) or JSONL, a column for each language.", folder=False),
]
AccuracyDataOption = Annotated[
    Path | None, _data("accuracy: folder of your own JSONL tasks.", folder=True)
]
InputDataOption = Annotated[
    Path | None, _data("input: JSONL with passages, questions and answers.", folder=False)
]

OutputOption = Annotated[
    Path,
    _out(
        "Folder of answers, report.json and report.html. A run that was stopped goes on when the "
        "same command is given again.",
        "--output",
        "-o",
        file_okay=False,
    ),
]
FreshOption = Annotated[
    bool, _out("Start over; what is in the folder moves to FOLDER.1.", "--fresh")
]
FailOnOption = Annotated[
    list[str] | None,
    _out(
        'Exit with 1 if the data show this: "stability<0" (a suite\'s main metric, pruned - '
        'original), "decode_ratio<1.5?" (with ?: unless they rule it out). Several may follow.'
    ),
]
# `--fail-on A B`: typer's options take one value each.
MoreConditions = Annotated[list[str] | None, typer.Argument(hidden=True, metavar="")]
JsonReportOption = Annotated[
    str | None, _out("Write the report as JSON here too; - prints it.", "--json")
]
