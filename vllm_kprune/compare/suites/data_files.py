"""The user's files, read before a run's folder is made and anything is asked.

A suite reads its file again when its turn comes. Files that lm-eval alone understands are read by
it then.
"""

from collections.abc import Callable, Iterable, Mapping

from vllm_kprune.compare.run import CompareOptions
from vllm_kprune.compare.suites.accuracy_tasks import check_files, chosen_tasks
from vllm_kprune.compare.suites.parallel_text import sentences_of
from vllm_kprune.compare.suites.passages import passages_of
from vllm_kprune.compare.suites.stability_prompts import stability_prompts

__all__ = ["check_data"]


def check_data(options: CompareOptions, suites: Iterable[str]) -> None:
    """A `KPruneError` for the first file that a suite of the run could not use."""
    for suite in suites:
        if check := _CHECKS.get(suite):
            check(options)


def _stability(options: CompareOptions) -> None:
    if options.benchmark:
        stability_prompts(options.languages, options.benchmark)


def _translation(options: CompareOptions) -> None:
    if len(options.languages) > 1:  # else the suite says what it needs
        sentences_of(options.translations, options.languages)


def _accuracy(options: CompareOptions) -> None:
    chosen = chosen_tasks(options.accuracy, options.accuracy_data)
    if options.accuracy_data:
        check_files(options.accuracy_data, {name for names in chosen.values() for name in names})


_CHECKS: Mapping[str, Callable[[CompareOptions], object]] = {
    "stability": _stability,
    "translation": _translation,
    "accuracy": _accuracy,
    "input": passages_of,
}
