"""The sections of the pages of `kprune analyze`: results as charts and tables."""

from collections.abc import Iterator, Sequence
from itertools import chain
from statistics import fmean

from vllm_kprune.analyze.charts import Series, heatmap, interval_chart, line_chart, table
from vllm_kprune.analyze.features import FeatureChange, PartChange
from vllm_kprune.analyze.lape import LanguageNeurons
from vllm_kprune.analyze.mask_similarity import MaskSimilarity
from vllm_kprune.analyze.page import Section
from vllm_kprune.analyze.run import FeatureResults, NeuronResults, PerplexityResults

__all__ = ["feature_sections", "mask_sections", "neuron_sections", "perplexity_sections"]


def perplexity_sections(results: PerplexityResults) -> Iterator[Section]:
    """Bits per character with intervals, perplexity, and its signal-to-noise ratio."""
    languages = list(results.models[0].languages)
    series = []
    for number, model in enumerate(results.models):
        bits = [model.languages[language].bits_per_character for language in languages]
        margins = [one.interval[1] - one.value if one.interval else 0.0 for one in bits]
        points = [(one.value, float(row)) for row, one in enumerate(bits)]
        series.append(Series(model.name, points, margins, number))
    yield Section(
        "Bits per character",
        "Less is better. Tokenizers can be compared. Lines are 95 % intervals for other text of "
        "the same kind. Two models on the same text can differ clearly although theirs overlap.",
        [interval_chart("Bits per character", languages, series, "bits per character")],
    )
    rows = [
        [model.name, *(f"{model.languages[one].perplexity.value:,.2f}" for one in languages)]
        for model in results.models
    ]
    yield Section(
        "Perplexity",
        "Per token, so only models with the same tokenizer can be compared.",
        [table(["model", *languages], rows)],
    )
    if ratios := results.signal_to_noise():
        values = [[one.get(language) for language in languages] for one in ratios.values()]
        yield Section(
            "Signal-to-noise ratio",
            "Mean over standard deviation of the perplexities of models that were calibrated in "
            "the same language. High: the calibration sample hardly matters.",
            [heatmap("Calibration down, text across", list(ratios), languages, values, 1)],
        )


def mask_sections(similarity: MaskSimilarity) -> Iterator[Section]:
    """IoU by language, by pair, by layer and by kind of matrix."""
    chance = fmean(pair.chance() for pair in similarity.pairs)
    note = f"Intersection over union of the zeros. Independent masks would have {chance:.3f}."
    languages = similarity.languages
    if len(languages) > 1:
        values = [[similarity.iou(a, b) for b in languages] for a in languages]
        yield Section(
            "Calibration languages",
            f"{note} On the diagonal: different models of one language.",
            [heatmap("Mean IoU of two languages", languages, languages, values)],
        )
    names = [model.name for model in similarity.models]
    iou = {frozenset((pair.first, pair.second)): pair.iou() for pair in similarity.pairs}
    every = range(len(names))
    values = [[1.0 if a == b else iou[frozenset((a, b))] for b in every] for a in every]
    yield Section("Models", note, [heatmap("IoU of two models", names, names, values)])
    yield Section(
        "Layers and matrices",
        "Means over pairs of models.",
        [_by_layer(similarity), _by_kind(similarity)],
    )


def _by_layer(similarity: MaskSimilarity) -> str:
    kinds = {"all pairs": None, "same calibration language": True, "other language": False}
    series = []
    for number, (name, same) in enumerate(kinds.items()):
        found = [(one, similarity.mean_iou(same=same, layer=one)) for one in similarity.layers]
        points = [(float(layer), value) for layer, value in found if value is not None]
        if points:
            series.append(Series(name, points, colour=number))
    # All pairs are shown only where there is nothing to tell them apart.
    shown = series[1:] if len(series) > 1 else series
    return line_chart("IoU by layer", shown, x_title="layer", y_title="IoU")


def _by_kind(similarity: MaskSimilarity) -> str:
    values = [
        [similarity.mean_iou(layer=layer, kind=kind) for layer in similarity.layers]
        for kind in similarity.kinds
    ]
    layers = [str(layer) for layer in similarity.layers]
    return heatmap("IoU by matrix and layer", similarity.kinds, layers, values, 2, "matrix")


def feature_sections(results: FeatureResults) -> Iterator[Section]:
    """Relative change of both kinds of features by layer, and means for several models."""
    note = "Mean length of the change, as a share of the original's mean length."
    if len(results.pruned) > 1:
        names = list(results.pruned)
        languages = next(iter(results.pruned.values())).languages
        charts = []
        for title, part in (("Language-agnostic", "agnostic"), ("Language-specific", "specific")):
            values = [_layer_means(getattr(one, part)) for one in results.pruned.values()]
            charts.append(heatmap(f"{title} features", names, languages, values))
        yield Section("Means over layers", note, charts)
    for name, change in results.pruned.items():
        yield Section(
            name,
            f"{note} The language-specific subspace has {change.rank} dimensions.",
            [
                _feature_chart("Language-agnostic features", change, change.agnostic),
                _feature_chart("Language-specific features", change, change.specific),
            ],
        )


def _layer_means(layers: Sequence[PartChange]) -> list[float]:
    return [fmean(values) for values in zip(*(one.relative for one in layers), strict=True)]


def _feature_chart(caption: str, change: FeatureChange, layers: Sequence[PartChange]) -> str:
    series = [
        Series(
            language,
            [(float(layer), one.relative[number]) for layer, one in enumerate(layers)],
            colour=number,
        )
        for number, language in enumerate(change.languages)
    ]
    return line_chart(caption, series, x_title="layer", y_title="change", share=True)


def neuron_sections(results: NeuronResults) -> Iterator[Section]:
    """Activation probability and entropy by LAPE, before and after, and the specific neurons."""
    for name, change in results.pruned.items():
        silent = f"{change.silent_before:,} are never active before, {change.silent_after:,} after"
        charts = chain.from_iterable(
            _neuron_charts(language, one) for language, one in change.languages.items()
        )
        yield Section(
            name,
            f"{change.neurons:,} neurons; {silent}. Only neurons that are active for a "
            "language at least as often as on average are in its charts, from the most specialised "
            "(left) to the least. Bands are 95 % intervals.",
            list(charts),
        )
        rows = []
        for language, one in change.languages.items():
            own = one.specific
            figures = ("-" if p is None else f"{p:.1%}" for p in (own.before, own.after))
            rows.append([language, f"{own.neurons:,}", *figures])
        head = ["language", "neurons", "active before", "active after"]
        yield Section(
            f"{name}: language-specific neurons",
            "Neurons of lowest LAPE, and for how many tokens of their language they are active.",
            [table(head, rows)],
        )


def _neuron_charts(language: str, neurons: LanguageNeurons) -> Iterator[str]:
    groups, count = neurons.groups, len(neurons.groups)
    if not groups:
        return
    places = [(number + 0.5) / count for number in range(count)]
    before = Series(
        "original",
        [(x, one.before) for x, one in zip(places, groups, strict=True)],
        [one.before_margin for one in groups],
        dashed=True,
    )
    after = Series(
        "pruned",
        [(x, one.after) for x, one in zip(places, groups, strict=True)],
        [one.after_margin for one in groups],
        colour=1,
    )
    x_title = "share of neurons with lower LAPE"
    yield line_chart(
        f"{language}: activation probability",
        [before, after],
        x_title=x_title,
        y_title="share of tokens",
        share=True,
    )
    entropies = [
        Series(
            "original", [(x, one.entropy_before) for x, one in zip(places, groups, strict=True)],
            dashed=True,
        ),
        Series(
            "pruned",
            [
                (x, one.entropy_after)
                for x, one in zip(places, groups, strict=True)
                if one.entropy_after is not None
            ],
            colour=1,
        ),
    ]  # fmt: skip
    yield line_chart(
        f"{language}: LAPE", [e for e in entropies if e.points], x_title=x_title, y_title="nats"
    )
