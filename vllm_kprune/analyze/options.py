"""The options of `kprune analyze`: one table for each analysis."""

from dataclasses import dataclass

from vllm_kprune.options import option
from vllm_kprune.sparsify.options import DeviceOptions

__all__ = ["FeatureOptions", "NeuronOptions", "PerplexityOptions"]


@dataclass(frozen=True, kw_only=True)
class _TextOptions:
    text: tuple[str, ...] = option(
        (),
        "Text and its language, as in ko=korean.txt (.txt, .jsonl, also .gz or .zst); repeat for "
        "each language.",
        metavar="LANGUAGE=FILE",
    )


@dataclass(frozen=True, kw_only=True)
class _RunningTextOptions(_TextOptions):
    characters: int = option(100_000, "Characters of each file to read, from its start.", least=1)


# Options of the last base come first.
@dataclass(frozen=True, kw_only=True)
class PerplexityOptions(DeviceOptions, _RunningTextOptions):
    """How perplexity is measured."""

    length: int = option(1024, "Tokens of a window.", least=2)
    stride: int | None = option(
        None,
        "Tokens from one window to the next. Below --length, tokens have more context and the run "
        "takes longer; every token counts once all the same.",
        least=1,
        default_text="no overlap",
    )


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(DeviceOptions, _TextOptions):
    """How features are measured."""

    lines: int = option(
        100,
        "Lines (or JSON records) of each file to read, from its start. Best are files that say the "
        "same line by line.",
        least=1,
    )
    length: int = option(256, "Tokens of a line that are read at most.", least=2)
    rank: int | None = option(
        None,
        "Dimensions of the language-specific subspace.",
        least=1,
        default_text="number of languages - 1",
    )


@dataclass(frozen=True, kw_only=True)
class NeuronOptions(DeviceOptions, _RunningTextOptions):
    """How neurons are measured."""

    length: int = option(512, "Tokens of a window; windows do not overlap.", least=2)
    share: float = option(
        0.01, "Share of all neurons that are called language-specific.", above=0, most=0.5
    )
