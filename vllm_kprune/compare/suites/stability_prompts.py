"""Prompts that expect an answer in a certain language: kprune's own, and those of the benchmark.

kprune's prompts (`data/stability.json`) are in Korean, English and Chinese, short and long; some of
them ask in one language for an answer in another. The Language Confusion Benchmark (Marchisio et
al. 2024) consists of CSV files with the columns `prompt` and `language`.
"""

import csv
import io
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from vllm_kprune.compare.endpoint.messages import Request
from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.bounded import read_text

__all__ = [
    "STABILITY_TOKENS",
    "Prompt",
    "cautions",
    "pick",
    "request_of",
    "stability_prompts",
]

STABILITY_TOKENS = 40  # of an answer, unless --max-tokens says otherwise

_MAX_BYTES = 8 << 20  # a file of the benchmark has 300 kB
_MOST_FILES = 1_000
_MOST_COLUMNS = 100
_MAX_PROMPT = 20_000  # characters
# The format for models without a chat template.
_COMPLETIONS = {
    "ko": "질문: {}\n\n답변:",
    "en": "Question: {}\n\nAnswer:",
    "zh": "问题：{}\n\n回答：",
    "ja": "質問：{}\n\n回答：",
}


@dataclass(frozen=True)
class Prompt:
    """A prompt in the language `asked` for an answer in the language `language`.

    `kind` is its origin: `ko`, `en-ko`, or the name of a file. `source` is the data set that it
    belongs to, whatever the language.
    """

    key: str
    kind: str
    asked: str
    language: str
    text: str
    source: str = "own"


def stability_prompts(languages: Sequence[str], benchmark: Path | None) -> list[Prompt]:
    """All prompts that involve no other languages than these."""
    found = [*_own(languages), *(_benchmark(benchmark, languages) if benchmark else ())]
    if not found:
        raise KPruneError(
            f"there are no prompts for {', '.join(languages)}: kprune has ko, en and zh; for other "
            "languages, name a folder with the benchmark's CSV files (--benchmark)"
        )
    return found


def cautions(languages: Sequence[str], prompts: Sequence[Prompt]) -> list[str]:
    """A warning if there is no prompt for some of the languages, which are left out."""
    lacking = [code for code in languages if code not in {prompt.language for prompt in prompts}]
    if not lacking:
        return []
    return [
        f"WARNING: there are no prompts for {', '.join(lacking)}, so nothing is asked in this "
        "language; name a folder with the benchmark's CSV files (--benchmark)"
    ]


def pick(prompts: Sequence[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """At most `limit` prompts, evenly from all kinds, drawn by the seed, in the given order."""
    if limit is None or limit >= len(prompts):
        return list(prompts)
    # The n-th prompt drawn of each kind has turn n. Sorted by turn, all kinds alternate, and the
    # first `limit` prompts cover them evenly.
    chance = random.Random(f"{seed} prompts")
    turns: dict[str, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for index in chance.sample(range(len(prompts)), len(prompts)):
        turn = turns[prompts[index].kind] = turns.get(prompts[index].kind, 0) + 1
        ranked.append((turn, len(ranked), index))
    return [prompts[index] for index in sorted(index for *_, index in sorted(ranked)[:limit])]


def request_of(
    prompt: Prompt, *, chat: bool, max_tokens: int, temperature: float, seed: int
) -> Request:
    """The prompt as a chat, or as the beginning of a text that the answer continues."""
    request = Request("chat", max_tokens=max_tokens, temperature=temperature, seed=seed)
    if chat:
        return replace(request, messages=({"role": "user", "content": prompt.text},))
    text = _COMPLETIONS.get(prompt.asked, "{}\n\n").format(prompt.text)
    return replace(request, kind="completion", prompt=text)


def _own(languages: Sequence[str]) -> Iterator[Prompt]:
    text = files(__package__).joinpath("data/stability.json").read_text(encoding="utf-8")
    for kind, prompts in json.loads(text).items():
        # `en-ko` asks in English for an answer in Korean; `ko` does both in Korean.
        asked, _, answered = kind.partition("-")
        if {asked, answered or asked} <= set(languages):
            for number, prompt in enumerate(prompts, 1):
                source = "own, across languages" if answered else "own"
                yield Prompt(f"{kind}/{number}", kind, asked, answered or asked, prompt, source)


def _benchmark(folder: Path, languages: Sequence[str]) -> Iterator[Prompt]:
    found = folder.rglob("*.csv") if folder.is_dir() else ()
    paths = sorted(itertools.islice(found, _MOST_FILES + 1))
    if not paths:
        raise KPruneError(f"--benchmark: {folder} has no .csv files")
    if len(paths) > _MOST_FILES:
        raise KPruneError(f"--benchmark: {folder} has more than {_MOST_FILES:,} .csv files")
    for path in paths:
        kind = "/".join(path.relative_to(folder).with_suffix("").parts)
        for number, (language, text) in enumerate(_rows(path), 1):
            if language in languages:
                # Cross-lingual prompts are in English; the column names the answer's language.
                asked = "en" if "crosslingual" in kind else language
                source = kind.rpartition("/")[0] or "benchmark"
                yield Prompt(f"{kind}/{number}", kind, asked, language, text, source)


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        text = read_text(path, _MAX_BYTES).removeprefix("\ufeff")
    except KPruneError as error:
        raise KPruneError(f"--benchmark: {error}") from None
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        names = reader.fieldnames or ()
        if len(names) > _MOST_COLUMNS:
            raise KPruneError(
                f"--benchmark: {path} has {len(names):,} columns, expected at most {_MOST_COLUMNS}"
            )
        for row in reader:
            prompt, language = row.get("prompt"), row.get("language")
            if not prompt or not language or len(prompt) > _MAX_PROMPT:
                raise KPruneError(
                    f"--benchmark: {path} has a row without `prompt` and `language`, "
                    f"or one of more than {_MAX_PROMPT:,} characters"
                )
            yield language.strip().lower(), prompt
    except csv.Error as error:
        raise KPruneError(f"--benchmark: {path} is not a CSV file ({error})") from None
