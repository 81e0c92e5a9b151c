"""`kprune analyze`: what pruning changes in a model, measured in four ways."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from vllm_kprune.analyze.features import PartChange
from vllm_kprune.analyze.options import FeatureOptions, NeuronOptions, PerplexityOptions
from vllm_kprune.analyze.page import Section, check_page, write_page
from vllm_kprune.analyze.run import (
    analyze_features,
    analyze_masks,
    analyze_neurons,
    analyze_perplexity,
    settings_of,
)
from vllm_kprune.analyze.sections import (
    feature_sections,
    mask_sections,
    neuron_sections,
    perplexity_sections,
)
from vllm_kprune.cli.console import error_console, estimated_steps, log, write_json
from vllm_kprune.cli.options import JsonOptions
from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.options import REQUIRED, option

__all__ = ["register"]


@dataclass(frozen=True, kw_only=True)
class _Models:
    models: tuple[str, ...] = option(
        REQUIRED, "Folders of models, or their ids on the model hub.", positional=True,
        metavar="MODEL",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Sparsified:
    folders: tuple[str, ...] = option(
        REQUIRED,
        "Sparsified folders: DIR, or ko=DIR for one whose calibration language is not recorded.",
        positional=True,
        metavar="DIR",
    )


@dataclass(frozen=True, kw_only=True)
class _Pair:
    original: str = option(
        REQUIRED, "Folder of the original model, or its id on the model hub.", positional=True
    )
    pruned: tuple[str, ...] = option(REQUIRED, "Folders of its prunings.", positional=True)


@dataclass(frozen=True, kw_only=True)
class _Outcome(JsonOptions):
    html: Path | None = option(None, "Draw charts in this web page, which loads nothing.")

    def check(self) -> None:
        """Raise `KPruneError` before the long part if the page cannot be written."""
        if self.html:
            check_page(self.html)

    def write(
        self, title: str, document: dict[str, Any], sections: Iterable[Section], table: Table
    ) -> None:
        """Write what was asked for, and print the table if JSON is not printed."""
        if self.html:
            lead = document.get("settings", {})
            texts = lead.get("text", {})
            named = ", ".join(
                f"{language} {one['file']}" for language, ones in texts.items() for one in ones
            )
            write_page(self.html, title, f"Text: {named}" if named else "", list(sections))
        if self.json_to:
            write_json(document, self.json_to)
        if self.json_to != "-":
            error_console.print(table)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Measure what pruning changes in a model: perplexity, masks, features, neurons.",
        no_args_is_help=True,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    group.command("perplexity")(with_options(_perplexity, _Models, PerplexityOptions, _Outcome))
    group.command("masks")(with_options(_masks, _Sparsified, _Outcome))
    group.command("features")(with_options(_features, _Pair, FeatureOptions, _Outcome))
    group.command("neurons")(with_options(_neurons, _Pair, NeuronOptions, _Outcome))
    app.add_typer(group, name="analyze")


def _perplexity(given: _Models, options: PerplexityOptions, outcome: _Outcome) -> None:
    """Perplexity and bits per character, by language.

    Bits per character do not depend on the tokenizer, so an original can be compared with a model
    of fewer tokens. Intervals are 95 %, over windows of the text.
    Example:  kprune analyze perplexity MODEL build/sparse --text ko=ko.txt --text en=en.txt
    """
    outcome.check()
    with estimated_steps() as progress:
        results = analyze_perplexity(given.models, options, progress=progress, tell=_warn)
    table = _table("model", "language", "perplexity", "bits/character", "95 %", "characters")
    for model in results.models:
        for language, one in model.languages.items():
            bits = one.bits_per_character
            reach = "{:.3f} to {:.3f}".format(*bits.interval) if bits.interval else "one window"
            figures = f"{one.perplexity.value:,.2f}", f"{bits.value:.3f}"
            row = (model.name, language, *figures, reach, f"{one.characters:,}")
            table.add_row(*map(escape, row))
    document = {"settings": settings_of(options), **results.document()}
    outcome.write("Perplexity", document, perplexity_sections(results), table)


def _masks(given: _Sparsified, outcome: _Outcome) -> None:
    """How alike the zeros of sparsified models are.

    Intersection over union of the zeros of each pair, by layer and matrix, within and between the
    languages that the models were calibrated with.
    Example:  kprune analyze masks build/sparse-ko build/sparse-en --html masks.html
    """
    outcome.check()
    with estimated_steps() as progress:
        similarity = analyze_masks(given.folders, progress=progress)
    table = _table("first", "second", "IoU", "by chance")
    for pair in similarity.pairs:
        names = (similarity.models[n].name for n in (pair.first, pair.second))
        table.add_row(*map(escape, names), f"{pair.iou():.4f}", f"{pair.chance():.4f}")
    outcome.write("Pruning masks", similarity.document(), mask_sections(similarity), table)


def _features(given: _Pair, options: FeatureOptions, outcome: _Outcome) -> None:
    """How much pruning changes language-agnostic and language-specific features.

    By LSAR (Xie et al. 2022): the mean embeddings of the languages span the language-specific
    subspace of each layer. Give text of at least two languages, best the same line by line.
    Example:  kprune analyze features MODEL build/sparse --text ko=ko.txt --text en=en.txt
    """
    outcome.check()
    with estimated_steps() as progress:
        results = analyze_features(
            given.original, given.pruned, options, progress=progress, tell=_warn
        )
    table = _table("model", "language", "agnostic change", "specific change")
    for name, change in results.pruned.items():
        for number, language in enumerate(change.languages):
            means = (_mean_relative(part, number) for part in (change.agnostic, change.specific))
            table.add_row(escape(name), language, *(f"{mean:.1%}" for mean in means))
    document = {"settings": settings_of(options), **results.document()}
    outcome.write("Features", document, feature_sections(results), table)


def _neurons(given: _Pair, options: NeuronOptions, outcome: _Outcome) -> None:
    """How pruning changes the neurons that are specific to a language.

    By LAPE (Tang et al. 2024): the entropy of a neuron's activation probabilities over languages.
    Give text of at least two languages.
    Example:  kprune analyze neurons MODEL build/sparse --text ko=ko.txt --text en=en.txt
    """
    outcome.check()
    with estimated_steps() as progress:
        results = analyze_neurons(
            given.original, given.pruned, options, progress=progress, tell=_warn
        )
    table = _table("model", "language", "specific neurons", "active before", "active after")
    for name, change in results.pruned.items():
        for language, one in change.languages.items():
            own = one.specific
            shares = ("-" if p is None else f"{p:.1%}" for p in (own.before, own.after))
            table.add_row(escape(name), language, f"{own.neurons:,}", *shares)
    document = {"settings": settings_of(options), **results.document()}
    outcome.write("Neurons", document, neuron_sections(results), table)


def _mean_relative(layers: Iterable[PartChange], language: int) -> float:
    return fmean(one.relative[language] for one in layers)


def _table(*headings: str) -> Table:
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right", overflow="fold")
    return table


def _warn(line: str) -> None:
    log(f"warning: {line}")
