"""Prompts that ask for an answer in a language: kprune's own, and those of the benchmark's files.

Ours (`data/stability.json`) were written for kprune: Korean, English and Chinese, and prompts in
one language that ask for an answer in another, short and long. The Language Confusion Benchmark
(Marchisio et al. 2024) comes as CSV files with the columns `prompt` and `language`.
"""

import csv
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from vllm_kprune.compare.endpoint.messages import Request
from vllm_kprune.errors import KPruneError

__all__ = ["Prompt", "pick", "request_of", "stability_prompts"]

_MAX_BYTES = 32 * 1024 * 1024
_MAX_PROMPT = 20_000  # characters
# How a model without a chat template is asked.
_COMPLETIONS = {
    "ko": "질문: {}\n\n답변:",
    "en": "Question: {}\n\nAnswer:",
    "zh": "问题：{}\n\n回答：",
    "ja": "質問：{}\n\n回答：",
}


@dataclass(frozen=True)
class Prompt:
    """`kind` is where it comes from (`ko`, `en-ko`, a file's name), `asked` its own language, and
    `language` the answer's."""

    key: str
    kind: str
    asked: str
    language: str
    text: str


def stability_prompts(languages: Sequence[str], benchmark: Path | None) -> list[Prompt]:
    """All prompts that need no other language than these."""
    found = [*_own(languages), *(_benchmark(benchmark, languages) if benchmark else ())]
    if not found:
        raise KPruneError(
            f"there are no prompts for {', '.join(languages)}: ours are ko, en and zh, others "
            "come from the benchmark's CSV files (--benchmark)"
        )
    return found


def pick(prompts: Sequence[Prompt], limit: int | None, seed: int) -> list[Prompt]:
    """At most `limit` prompts, of all kinds alike, in the given order; drawn by the seed."""
    if limit is None or limit >= len(prompts):
        return list(prompts)
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
    """The prompt as a chat, or as the beginning of a text whose end is the answer."""
    request = Request("chat", max_tokens=max_tokens, temperature=temperature, seed=seed)
    if chat:
        return replace(request, messages=({"role": "user", "content": prompt.text},))
    text = _COMPLETIONS.get(prompt.asked, "{}\n\n").format(prompt.text)
    return replace(request, kind="completion", prompt=text)


def _own(languages: Sequence[str]) -> Iterator[Prompt]:
    text = files(__package__).joinpath("data/stability.json").read_text(encoding="utf-8")
    for kind, prompts in json.loads(text).items():
        asked, _, answered = kind.partition("-")
        if {asked, answered or asked} <= set(languages):
            for number, prompt in enumerate(prompts, 1):
                yield Prompt(f"{kind}/{number}", kind, asked, answered or asked, prompt)


def _benchmark(folder: Path, languages: Sequence[str]) -> Iterator[Prompt]:
    paths = sorted(folder.rglob("*.csv")) if folder.is_dir() else []
    if not paths:
        raise KPruneError(f"--benchmark: {folder} has no .csv files with prompts")
    for path in paths:
        if path.stat().st_size > _MAX_BYTES:
            raise KPruneError(f"--benchmark: {path} is too large for a file of prompts")
        kind = "/".join(path.relative_to(folder).with_suffix("").parts)
        for number, (language, text) in enumerate(_rows(path), 1):
            if language in languages:
                asked = "en" if "crosslingual" in kind else language
                yield Prompt(f"{kind}/{number}", kind, asked, language, text)


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream):
                text, language = row.get("prompt"), row.get("language")
                if not text or not language or len(text) > _MAX_PROMPT:
                    raise KPruneError(
                        f"--benchmark: {path} has a row without `prompt` and `language`, "
                        f"or one of more than {_MAX_PROMPT:,} characters"
                    )
                yield language.strip().lower(), text
    except (UnicodeDecodeError, csv.Error) as error:
        raise KPruneError(f"--benchmark: {path} is no CSV file in UTF-8 ({error})") from None
