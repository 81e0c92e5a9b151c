"""The options that all suites share. Each suite declares its own (`Suite.Options`)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vllm_kprune.errors import KPruneError
from vllm_kprune.options import option
from vllm_kprune.profile import LANGUAGES, nearest_language

__all__ = ["DATA", "ENDPOINTS", "MEASURED", "CommonOptions", "NoOptions"]

# Panels of `kprune compare --help`.
ENDPOINTS, MEASURED, DATA = "Endpoints", "What is measured", "Your data"


def _known_languages(name: str, codes: Iterable[str]) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(code.lower() for code in codes))
    for code in wanted:
        if code not in LANGUAGES:
            raise KPruneError(f"{name}: unknown code {code!r}; {nearest_language(code)}")
    return wanted


@dataclass(frozen=True)
class CommonOptions:
    """How much is asked and in which languages; a resumed run must use the same values.

    The folders are for what an endpoint cannot report: the size of a model and its vocabulary.
    """

    original_folder: Path | None = option(
        None,
        "Folder of the original model, to measure its size on disk and to compare answers token "
        "by token. A vLLM server on this machine reports it.",
        existing="folder",
        group=ENDPOINTS,
    )
    pruned_folder: Path | None = option(
        None, "Folder of the pruned model or of its overlay.", existing="folder", group=ENDPOINTS
    )
    concurrency: int = option(
        32, "Requests at a time for each endpoint.", least=1, most=256, group=ENDPOINTS
    )
    limit: int | None = option(
        None, "Maximum number of items in each suite, drawn by --seed.", least=1, group=MEASURED
    )
    # In order: the first one is the pivot of `translation`.
    languages: tuple[str, ...] = option(
        ("ko", "en"),
        "Language to ask and answer in; repeat for several.",
        flags=("--language",),
        commas=True,
        least_items=1,
        then=_known_languages,
        group=MEASURED,
    )
    max_tokens: int | None = option(
        None,
        "Maximum length of an answer, in tokens. A thinking model needs more than the default.",
        default_text="stability 48, translation 256, exactness 24, tasks of accuracy 256",
        least=1,
        group=MEASURED,
    )
    seed: int = option(0, "Seed for drawing items, orders and samples.", least=0, group=MEASURED)

    def tokens(self, own: int) -> int:
        """The maximum length of an answer in a suite that has its own default."""
        return self.max_tokens or own


@dataclass(frozen=True)
class NoOptions:
    """The options of a suite that has none."""
