"""The analyses of `kprune analyze`: models and texts in, results for JSON, table and page out."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_kprune import __version__
from vllm_kprune.analyze.features import FeatureChange, compare_features, embed_prompts
from vllm_kprune.analyze.lape import NeuronChange, check_languages, compare_neurons
from vllm_kprune.analyze.layers import FolderLayers
from vllm_kprune.analyze.mask_similarity import MaskSimilarity, compare_masks
from vllm_kprune.analyze.masks import FolderMasks, calibration_languages
from vllm_kprune.analyze.models import load_model
from vllm_kprune.analyze.neurons import count_active
from vllm_kprune.analyze.options import FeatureOptions, NeuronOptions, PerplexityOptions
from vllm_kprune.analyze.perplexity import Perplexity, measure_perplexity, signal_to_noise
from vllm_kprune.analyze.prompts import make_prompts, window_prompts
from vllm_kprune.analyze.subspace import checked_rank
from vllm_kprune.analyze.texts import (
    parse_language_files,
    read_lines,
    read_running_text,
)
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import LANGUAGES
from vllm_kprune.progress import Progress
from vllm_kprune.sparsify.body import open_body
from vllm_kprune.storage.digest import sha256_file
from vllm_kprune.tokenizer.encoder import load_encoder

__all__ = [
    "FeatureResults",
    "MeasuredModel",
    "NeuronResults",
    "PerplexityResults",
    "analyze_features",
    "analyze_masks",
    "analyze_neurons",
    "analyze_perplexity",
    "settings_of",
]


@dataclass(frozen=True)
class MeasuredModel:
    """A model's perplexity by language; `calibration` is `ko`, `en+ko` or empty if not recorded."""

    name: str
    calibration: str
    languages: Mapping[str, Perplexity]


@dataclass(frozen=True)
class PerplexityResults:
    """The perplexity of several models on the same text."""

    models: tuple[MeasuredModel, ...]

    def signal_to_noise(self) -> dict[str, dict[str, float]]:
        """Calibration -> language -> ratio of its perplexities, of two or more such models."""
        groups: dict[str, list[MeasuredModel]] = defaultdict(list)
        for model in self.models:
            groups[model.calibration].append(model)
        found: dict[str, dict[str, float]] = {}
        for calibration, models in groups.items():
            for language in models[0].languages:
                values = [model.languages[language].perplexity.value for model in models]
                ratio = signal_to_noise(values) if calibration else None
                if ratio is not None:
                    found.setdefault(calibration, {})[language] = ratio
        return found

    def document(self) -> dict[str, Any]:
        """For JSON."""
        models = [asdict(model) for model in self.models]
        return {"models": models, "signal_to_noise": self.signal_to_noise()}


@dataclass(frozen=True)
class FeatureResults:
    """The change of features from one original to each of several pruned models."""

    original: str
    pruned: Mapping[str, FeatureChange]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        pruned = {name: change.document() for name, change in self.pruned.items()}
        return {"original": self.original, "pruned": pruned}


@dataclass(frozen=True)
class NeuronResults:
    """The change of neurons from one original to each of several pruned models."""

    original: str
    pruned: Mapping[str, NeuronChange]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        pruned = {name: change.document() for name, change in self.pruned.items()}
        return {"original": self.original, "pruned": pruned}


def analyze_perplexity(
    models: Sequence[str],
    options: PerplexityOptions,
    *,
    progress: Progress,
    tell: Callable[[str], None],
) -> PerplexityResults:
    """Perplexity and bits per character of each model, one in memory at a time."""
    files = parse_language_files(options.text)
    bodies = [open_body(model) for model in models]
    texts = read_running_text(files, options.characters, tell)
    measured = []
    for name, body in zip(_names(models), bodies, strict=True):
        progress(f"load {name}", 0.0)
        model, encoder = load_model(body, options.device), load_encoder(body.base.folder)
        length = _fitting(options.length, model.config)
        found = measure_perplexity(
            model,
            encoder,
            texts,
            length=length,
            stride=options.stride,
            progress=_renamed(progress, f"measure {name}"),
        )
        calibration = "+".join(calibration_languages(body.base.folder))
        measured.append(MeasuredModel(name, calibration, found))
        del model
    return PerplexityResults(tuple(measured))


def analyze_masks(folders: Sequence[str], *, progress: Progress) -> MaskSimilarity:
    """The overlap of the folders' zeros; each is DIR or LANGUAGE=DIR."""
    given = [_language_folder(value) for value in folders]
    names = _names([folder for folder, _ in given])
    masks = [
        FolderMasks(folder, name=name, languages=languages)
        for name, (folder, languages) in zip(names, given, strict=True)
    ]
    return compare_masks(masks, progress=progress)


def analyze_features(
    original: str,
    pruned: Sequence[str],
    options: FeatureOptions,
    *,
    progress: Progress,
    tell: Callable[[str], None],
) -> FeatureResults:
    """How each pruned model's features differ from the original's."""
    files = parse_language_files(options.text)
    rank = checked_rank(len(files), options.rank)
    layers = _open_all([original, *pruned], options)
    first = next(iter(layers.values()))
    length = _fitting(options.length, first.config)
    lines = read_lines(files, options.lines, tell)
    prompts = make_prompts(load_encoder(first.folder), first.config, lines, length)
    found = {}
    before = embed_prompts(first, prompts, progress=progress)
    for name, one in list(layers.items())[1:]:
        after = embed_prompts(one, prompts, progress=progress)
        found[name] = compare_features(before, after, rank=rank)
    return FeatureResults(next(iter(layers)), found)


def analyze_neurons(
    original: str,
    pruned: Sequence[str],
    options: NeuronOptions,
    *,
    progress: Progress,
    tell: Callable[[str], None],
) -> NeuronResults:
    """How each pruned model's neurons differ from the original's."""
    files = parse_language_files(options.text)
    check_languages(len(files))
    layers = _open_all([original, *pruned], options)
    first = next(iter(layers.values()))
    length = _fitting(options.length, first.config)
    texts = read_running_text(files, options.characters, tell)
    prompts = window_prompts(load_encoder(first.folder), first.config, texts, length)
    before = count_active(first, prompts, progress=progress)
    found = {}
    for name, one in list(layers.items())[1:]:
        after = count_active(one, prompts, progress=progress)
        found[name] = compare_neurons(before, after, share=options.share)
    return NeuronResults(next(iter(layers)), found)


def settings_of(options: Any) -> dict[str, Any]:
    """What a result depends on: options, digests of the texts, version."""
    files = parse_language_files(options.text)
    texts = {
        language: [{"file": path.name, "sha256": sha256_file(path)} for path in paths]
        for language, paths in files.items()
    }
    return {**asdict(options), "text": texts, "kprune": __version__}


def _open_all(
    models: Sequence[str], options: FeatureOptions | NeuronOptions
) -> dict[str, FolderLayers]:
    """Name -> layers; all have the tokenizer of the first one."""
    names = _names(models)
    layers = {
        name: FolderLayers(model, options.device, name=name)
        for name, model in zip(names, models, strict=True)
    }
    first = next(iter(layers.values()))
    tokenizer = load_encoder(first.folder).to_str()
    for name, one in layers.items():
        if one.shape != first.shape or load_encoder(one.folder).to_str() != tokenizer:
            raise KPruneError(
                f"{name} has another shape or tokenizer than {first.name}; give a model and "
                "prunings of its weights"
            )
    return layers


def _fitting(length: int, config: Any) -> int:
    """A window's length, checked to be what the model takes."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(most, int) and length > most:
        raise KPruneError(
            f"--length {length} is more than the {most} positions of the model; lower it"
        )
    return length


def _names(models: Sequence[str]) -> list[str]:
    """Short names: the folders' own, or as given where two are the same."""
    short = [Path(model).expanduser().absolute().name for model in models]
    counts = Counter(short)
    names = [one if counts[one] == 1 else model for one, model in zip(short, models, strict=True)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise KPruneError(f"{twice} is given twice")
    return names


def _language_folder(value: str) -> tuple[str, tuple[str, ...]]:
    """The folder, and the calibration language if one was named (`ko=DIR`)."""
    language, sign, folder = value.partition("=")
    if sign and not Path(value).expanduser().is_dir() and language.lower() in LANGUAGES:
        return folder, (language.lower(),)
    return value, ()


def _renamed(progress: Progress, title: str) -> Callable[[str, float], None]:
    return lambda step, share: progress(title, share)
