"""Which tables of counts a profile's genres, languages and hanja bring.

A table is a file in `words/`; `packaging/words` says where it was counted. Tables of prose count
only for languages that they are written in, and those of code, formulas and addresses for all.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from vllm_kprune.profile import Profile
from vllm_kprune.vocabulary.batches import WeightedText
from vllm_kprune.vocabulary.made_texts import (
    chat_texts,
    hanja_character_texts,
    hanja_texts,
    run_texts,
)

__all__ = ["GenreTable", "profile_tables"]


@dataclass(frozen=True)
class GenreTable:
    """A table of pieces with rates.

    `language`: the one whose profiles take it; empty for all. `allowance`: see `Source`. `made`:
    makes the texts, from `file` or from nothing, where they are no table of pieces.
    """

    name: str
    file: str
    language: str = ""
    allowance: float = 1.0
    made: Callable[[], Iterator[WeightedText]] | None = None


_CODE = ("TypeScript", "Go", "Haskell", "Java", "Kotlin", "Swift", "C#", "SQL")
# What has no words of its own (noise, and words broken at the ends of lines) may cost more.
_NOISE = 3.0
_TABLES: Mapping[str, tuple[GenreTable, ...]] = {
    "chat": (GenreTable("chat", "", made=chat_texts),),
    "code": (
        GenreTable("source code", "code"),
        *(GenreTable(name, f"genre-{name.lower().replace('#', 'sharp')}") for name in _CODE),
        GenreTable("stack traces", "genre-traces"),
        GenreTable("runs of a character", "", allowance=_NOISE, made=run_texts),
    ),
    "web": (
        GenreTable("JSON", "genre-json"),
        GenreTable("URLs", "genre-urls"),
        GenreTable("base64 and ids", "genre-data", allowance=_NOISE),
    ),
    "documents": (GenreTable("PDF text", "genre-pdf", "en", allowance=_NOISE),),
    "law": (GenreTable("English law", "genre-law", "en"),),
    "medicine": (GenreTable("English medicine", "genre-medicine", "en"),),
    "finance": (GenreTable("English finance", "genre-finance", "en"),),
    "mathematics": (GenreTable("LaTeX", "genre-latex"),),
}
_KOREAN = (
    GenreTable("Korean text", "genre-korean", "ko"),
    GenreTable("Korean dates and units", "genre-dates", "ko"),
)
_HANJA = GenreTable("hanja", "hanja-words", "ko", allowance=_NOISE, made=hanja_texts)
# A profile without hanja keeps only parts of their characters, so it is not held to any share.
_HANJA_PARTS = replace(_HANJA, name="parts of hanja", made=hanja_character_texts, allowance=1000.0)


def profile_tables(profile: Profile) -> Iterator[GenreTable]:
    """The tables that count for a profile, besides that of English text."""
    tables = [table for genre in _TABLES for table in _TABLES[genre] if genre in profile.genres]
    tables += [*_KOREAN, _HANJA_PARTS if profile.hanja == "none" else _HANJA]
    return (table for table in tables if table.language in {"", *profile.languages})
