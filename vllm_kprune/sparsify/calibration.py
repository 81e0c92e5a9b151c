"""The calibration text: read, checked for its language, and cut into samples of ids.

kprune ships word lists, but no running text, so the text is the user's: a file, or `ko=FILE`, which
says what language it should be in. Samples are whole windows of the text's tokens without overlap,
drawn with a seed, and each begins as the tokenizer begins a text (`<bos>` for Gemma and Llama).
Files share the samples equally.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from vllm_kprune.arrays import Integers
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import LANGUAGES, nearest_language
from vllm_kprune.storage.digest import sha256_file
from vllm_kprune.vocabulary.corpus import read_corpus
from vllm_kprune.vocabulary.language_id import language_identifier

__all__ = [
    "SHORTEST_LINE",
    "Calibration",
    "CalibrationFile",
    "draw_calibration",
    "identified_languages",
    "parse_calibration",
    "text_blocks",
]

# Windows are drawn from the first part of a file, of this many times the tokens that are needed.
_SPARE = 8
_BLOCK_CHARACTERS = 1 << 16
_LINES_LOOKED_AT = 300
# Characters of a line that language identification can say something about.
SHORTEST_LINE = 20
_EXPECTED_SHARE = 0.9
_NAMED = re.compile(r"(?P<language>[A-Za-z]{2,12})=(?P<path>.+)")


@dataclass(frozen=True)
class CalibrationFile:
    """A file of text, and the language that it should be in, if one was named."""

    path: Path
    language: str | None = None


@dataclass(frozen=True)
class Calibration:
    """Samples of token ids [samples, length], and what is recorded about each file."""

    ids: Integers
    files: tuple[dict[str, Any], ...]


def parse_calibration(
    values: Sequence[str], option: str = "--calibration"
) -> tuple[CalibrationFile, ...]:
    """The files that an option names: FILE or LANGUAGE=FILE."""
    return tuple(_parse(value, option) for value in values)


def _parse(value: str, option: str) -> CalibrationFile:
    if Path(value).is_file():
        return CalibrationFile(Path(value))
    if found := _NAMED.fullmatch(value):
        language, path = found["language"].lower(), Path(found["path"])
        if language not in LANGUAGES:
            raise KPruneError(f"{option} {value}: {nearest_language(language)}")
        if not path.is_file():
            raise KPruneError(f"{option} {value}: {path} does not exist or is not a file")
        return CalibrationFile(path, language)
    codes = [code.strip() for code in value.split(",")]
    if all(code in LANGUAGES for code in codes):
        wanted = " ".join(f"{option} {code}=FILE" for code in codes)
        raise KPruneError(
            f"{option} {value}: kprune ships word lists but no running text; give a text of "
            f"each language: {wanted}"
        )
    raise KPruneError(f"{option.lstrip('-')} {value} does not exist or is not a file")


def draw_calibration(
    files: Sequence[CalibrationFile],
    encoder: Tokenizer,
    *,
    samples: int,
    length: int,
    seed: int,
    tell: Callable[[str], None],
) -> Calibration:
    """Read the files and draw the samples; `tell` gets a warning for text of another language.

    Raises `KPruneError` for a file that is empty or too short for its share of the samples.
    """
    if samples < len(files):
        raise KPruneError(
            f"--samples {samples} is less than one for each of {len(files)} calibration files"
        )
    begin = encoder.encode("").ids
    random = np.random.default_rng(seed)
    drawn: list[Integers] = []
    notes: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        # 128 samples of 3 files are 43, 43 and 42.
        share = len(range(number, samples, len(files)))
        text = _Text(file, encoder, share * (length - len(begin)))
        windows = text.windows(length - len(begin), share, random)
        drawn += [np.array([*begin, *window], np.int64) for window in windows]
        notes.append(_note(text, share, tell))
    return Calibration(np.stack(drawn), tuple(notes))


def text_blocks(path: Path, characters: int = _BLOCK_CHARACTERS) -> Iterator[str]:
    """The text of a file in blocks of whole lines or records, each of about so many characters."""
    block, size = [], 0
    for text in read_corpus(path):
        # Records of JSON lines have no line end; without one, two texts would run together.
        block.append(text if text.endswith("\n") else f"{text}\n\n")
        size += len(text)
        if size >= characters:
            yield "".join(block)
            block, size = [], 0
    yield "".join(block)


class _Text:
    """The first part of a file, as lines for language identification and as ids."""

    def __init__(self, file: CalibrationFile, encoder: Tokenizer, needed: int) -> None:
        self.file, self.needed = file, needed
        self.lines: list[str] = []
        self.ids: list[int] = []
        self.empty = True
        for block in text_blocks(file.path):
            self.empty = self.empty and not block.strip()
            self.lines += [line for line in block.splitlines() if len(line) >= SHORTEST_LINE]
            self.ids += encoder.encode(block, add_special_tokens=False).ids
            if len(self.ids) >= _SPARE * needed:
                break

    def windows(self, width: int, count: int, random: np.random.Generator) -> list[list[int]]:
        """`count` of the windows of `width` ids that do not overlap."""
        path = self.file.path
        if self.empty:
            raise KPruneError(f"calibration {path} has no text")
        there = len(self.ids) // width
        if there < count:
            raise KPruneError(
                f"calibration {path} has {len(self.ids):,} tokens, but {count} samples need "
                f"{self.needed:,}; give more text, or lower --samples or --length"
            )
        chosen = random.permutation(there)[:count]
        return [self.ids[i * width : (i + 1) * width] for i in map(int, chosen)]


def _note(text: _Text, samples: int, tell: Callable[[str], None]) -> dict[str, Any]:
    file = text.file
    note: dict[str, Any] = {
        "file": file.path.name,
        "sha256": sha256_file(file.path),
        "language": file.language,
        "samples": samples,
    }
    if file.language is None:
        return note
    named = f"calibration {file.path}"
    return note | {"identified": identified_languages(named, file.language, text.lines, tell)}


def identified_languages(
    named: str, language: str, lines: Sequence[str], tell: Callable[[str], None]
) -> dict[str, float]:
    """The share of lines in each language; a warning if too few are in `language`.

    `named` is how the warning names the text.
    """
    step = max(1, len(lines) // _LINES_LOOKED_AT)
    lines = lines[::step] or ["".join(lines)]
    identify = language_identifier()
    counted = Counter(identify(line.strip()) for line in lines)
    shares = {code: round(count / len(lines), 4) for code, count in counted.most_common(3)}
    share = counted[language] / len(lines)
    if share < _EXPECTED_SHARE:
        found = ", ".join(f"{_language_name(code)} {part:.0%}" for code, part in shares.items())
        tell(
            f"{named}: only {share:.0%} of {len(lines)} lines look like "
            f"{LANGUAGES[language].name} (found: {found})"
        )
    return shares


def _language_name(code: str) -> str:
    # Nothing is found in lines of digits and the like.
    return LANGUAGES[code].name if code in LANGUAGES else "no language"
