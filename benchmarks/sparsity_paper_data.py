"""The texts of `sparsity_paper.py` in seven languages, from a folder with real text.

| use | text | why |
|---|---|---|
| calibration | tldr: what commands do, without the commands | one source has all seven languages |
| perplexity | passages of XQuAD; for Korean, which it lacks, of KoBEST BoolQ | prose, not in tldr |
| features and neurons | Universal Declaration of Human Rights | the same content in all languages |
| task | XQuAD questions, MGSM problems, KoBEST BoolQ questions | |

Calibration text is dealt out by seed, so that two seeds share no page. That no line of it is in a
text that measures anything is checked, not assumed.
"""

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.folders import new_file

__all__ = ["LANGUAGES", "Question", "Texts", "read_texts", "write_calibration"]

LANGUAGES = ("ar", "de", "en", "es", "ko", "ru", "zh")
_WORDS = {  # "question" and "answer", as the questions are put
    "ar": ("سؤال", "جواب"), "de": ("Frage", "Antwort"), "en": ("Question", "Answer"),
    "es": ("Pregunta", "Respuesta"), "ko": ("질문", "답변"), "ru": ("Вопрос", "Ответ"),
    "zh": ("问题", "答案"),
}  # fmt: skip
_YES_AND_NO = ("예", "아니오")
_KOREAN_HALF = 200
_SHORTEST_LINE = 40
_SHORTEST_LINES = {"ko": 20, "zh": 12}  # as much content in fewer characters


@dataclass(frozen=True)
class Question:
    """Answers to compare after a passage; with one answer, only its likelihood is measured."""

    task: str
    passage: str
    prompt: str
    answers: tuple[str, ...]
    right: int = 0


@dataclass(frozen=True)
class Texts:
    """What is measured in one language."""

    perplexity: tuple[str, ...]
    parallel: tuple[str, ...]
    questions: tuple[Question, ...]


def write_calibration(data: Path, folder: Path, seeds: int) -> dict[tuple[str, int], Path]:
    """A file of calibration text by language and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for language in LANGUAGES:
        pages = list(_descriptions(data / "calib-tldr" / f"{language}.jsonl.gz"))
        for seed in range(seeds):
            path = folder / f"{language}-{seed}.txt"
            if not path.is_file():  # another run may read it now
                with new_file(path) as stream:
                    stream.write(("\n\n".join(pages[seed::seeds]) + "\n").encode())
            files[language, seed] = path
    return files


def read_texts(data: Path, amounts: Mapping[str, int], calibration: list[Path]) -> dict[str, Texts]:
    """Texts by language; raises `KPruneError` if a line of the calibration is among them."""
    found = {
        language: Texts(
            perplexity=tuple(_passages(data, language)[: amounts["perplexity_passages"]]),
            parallel=tuple(_declaration(data, language)[: amounts["parallel_lines"]]),
            questions=tuple(_questions(data, language, amounts)),
        )
        for language in LANGUAGES
    }
    _check_apart(found, calibration)
    return found


def _check_apart(texts: Mapping[str, Texts], calibration: list[Path]) -> None:
    lines = {line for path in calibration for line in path.read_text("utf-8").splitlines() if line}
    for language, one in texts.items():
        measured = [*one.perplexity, *one.parallel, *(q.passage for q in one.questions)]
        shared = lines & {line for text in measured for line in text.splitlines()}
        if shared:
            raise KPruneError(f"{language}: {min(shared)!r} is in calibration and evaluation text")


def _descriptions(path: Path) -> Iterator[str]:
    """The pages' sentences: no commands, no links."""
    with gzip.open(_there(path), "rt", encoding="utf-8") as stream:
        for line in stream:
            rows = json.loads(line)["text"].splitlines()
            kept = [row[2:] for row in rows if row[:2] in ("> ", "- ") and "<http" not in row]
            if kept:
                yield "\n".join(kept)


def _passages(data: Path, language: str) -> list[str]:
    """The same passages in all languages but Korean, the shortest in English first."""
    if language == "ko":
        return [row["Text"].strip() for row in _boolq(data)[_KOREAN_HALF:]]
    # From the second half, where no questions are taken from.
    english, paragraphs = _xquad(data, "en"), _xquad(data, language)
    second = range(len(english) // 2, len(english))
    order = sorted(second, key=lambda number: len(english[number]["context"]))
    return [paragraphs[number]["context"].strip() for number in order]


def _declaration(data: Path, language: str) -> list[str]:
    """The lines of the declaration after its heading, which are the same in all languages."""
    text = _there(data / "calib-udhr" / f"{language}.txt").read_text(encoding="utf-8")
    shortest = _SHORTEST_LINES.get(language, _SHORTEST_LINE)
    return [line.strip() for line in text.splitlines()[3:] if len(line.strip()) >= shortest]


def _questions(data: Path, language: str, amounts: Mapping[str, int]) -> Iterator[Question]:
    if language == "ko":
        yield from _korean(data, amounts["boolq_questions"])
        return
    yield from _reading(data, language, amounts)
    if language != "ar":  # MGSM has no Arabic
        yield from _arithmetic(data, language, amounts["mgsm_problems"])


def _reading(data: Path, language: str, amounts: Mapping[str, int]) -> Iterator[Question]:
    """XQuAD: the same questions in each language, on the passages that are shortest in English."""
    english, paragraphs = _xquad(data, "en"), _xquad(data, language)
    each = amounts["xquad_questions_each"]
    able = [n for n, p in enumerate(english[: len(english) // 2]) if len(p["qas"]) >= each]
    able.sort(key=lambda n: len(english[n]["context"]))
    asks, replies = _WORDS[language]
    for number in able[: amounts["xquad_passages"]]:
        paragraph = paragraphs[number]
        for question in paragraph["qas"][:each]:
            yield Question(
                task="xquad",
                passage=paragraph["context"].strip(),
                prompt=f"\n{asks}: {question['question'].strip()}\n{replies}:",
                answers=(" " + question["answers"][0]["text"].strip(),),
            )


def _arithmetic(data: Path, language: str, count: int) -> Iterator[Question]:
    """MGSM: the right number against three numbers of other problems."""
    lines = _there(data / "eval-mgsm" / f"mgsm_{language}.tsv").read_text("utf-8").splitlines()
    rows = [line.rpartition("\t")[::2] for line in lines]
    # The shortest in English, so that all languages have the same problems.
    english = _there(data / "eval-mgsm" / "mgsm_en.tsv").read_text("utf-8").splitlines()
    order = sorted(range(len(rows)), key=lambda n: len(english[n]))
    numbers = [rows[n][1].replace(",", "") for n in order]
    asks, replies = _WORDS[language]
    for place, number in enumerate(order[:count]):
        others = [n for n in dict.fromkeys(numbers) if n != numbers[place]]
        wrong = np.random.default_rng(number).permutation(others)[:3]
        answers = tuple(f" {n}" for n in (numbers[place], *map(str, wrong)))
        yield Question("mgsm", f"{asks}: {rows[number][0]}", f"\n{replies}:", answers)


def _korean(data: Path, count: int) -> Iterator[Question]:
    """KoBEST BoolQ on the shortest passages, as many with yes as with no."""
    rows = sorted(_boolq(data)[:_KOREAN_HALF], key=lambda row: len(row["Text"]))
    for yes in (True, False):
        named = [row for row in rows if (row["Answer"].strip().lower() == "true") == yes]
        for row in named[: count // 2]:
            asks, replies = _WORDS["ko"]
            passage = f"{row['Text'].strip()}\n{asks}: {row['Question'].strip()}"
            answers = tuple(f" {word}" for word in _YES_AND_NO)
            yield Question("boolq", passage, f"\n{replies}:", answers, right=0 if yes else 1)


def _xquad(data: Path, language: str) -> list[dict[str, Any]]:
    path = _there(data / "xquad" / f"xquad.{language}.json.gz")
    articles = json.loads(gzip.decompress(path.read_bytes()))["data"]
    return [paragraph for article in articles for paragraph in article["paragraphs"]]


def _boolq(data: Path) -> list[dict[str, str]]:
    path = _there(data / "kobest-dev" / "boolq_first400.tsv")
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def _there(path: Path) -> Path:
    if not path.is_file():
        raise KPruneError(f"{path} does not exist; KPRUNE_DATA names the folder with the texts")
    return path
