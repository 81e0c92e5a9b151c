"""Which tables of counts a profile's genres, languages and hanja bring.

A table is a file in `words/`; `packaging/words` says where it was counted. Tables of prose count
only for languages that they are written in, and those of code, formulas and addresses for all.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from vllm_kprune.profile import Profile
from vllm_kprune.vocabulary.batches import WeightedText
from vllm_kprune.vocabulary.made_texts import chat_texts, hanja_texts

__all__ = ["Table", "profile_tables"]


@dataclass(frozen=True)
class Table:
    """A table of pieces with rates.

    `language`: the one whose profiles take it; empty for all. `allowance`: see `Source`. `made`:
    makes the texts, from `file` or from nothing, where they are no table of pieces.
    """

    name: str
    file: str
    language: str = ""
    allowance: float = 1.0
    made: Callable[[], Iterator[WeightedText]] | None = None


_CODE = ("typescript", "go", "haskell", "java", "kotlin", "swift", "csharp", "sql")
# What has no words of its own (noise, and words broken at the ends of lines) may cost more.
_NOISE = 3.0
_TABLES: Mapping[str, tuple[Table, ...]] = {
    "chat": (Table("chat", "", made=chat_texts),),
    "code": (
        Table("source code", "code"),
        *(Table(name, f"genre-{name}") for name in _CODE),
        Table("stack traces", "genre-traces"),
    ),
    "web": (
        Table("JSON", "genre-json"),
        Table("URLs", "genre-urls"),
        Table("base64 and ids", "genre-data", allowance=_NOISE),
    ),
    "documents": (Table("PDF text", "genre-pdf", "en", allowance=_NOISE),),
    "law": (Table("English law", "genre-law", "en"),),
    "medicine": (Table("English medicine", "genre-medicine", "en"),),
    "finance": (Table("English finance", "genre-finance", "en"),),
    "mathematics": (Table("LaTeX", "genre-latex"),),
}
_KOREAN = (
    Table("Korean text", "genre-korean", "ko"),
    Table("Korean dates and units", "genre-dates", "ko"),
)
_HANJA = Table("hanja", "hanja-words", "ko", allowance=_NOISE, made=hanja_texts)
# A profile without hanja keeps only parts of their characters, so it is not held to any share.
_HANJA_PARTS = replace(_HANJA, name="parts of hanja", allowance=1000.0)


def profile_tables(profile: Profile) -> Iterator[Table]:
    """The tables that count for a profile, besides that of English text."""
    tables = [table for genre in _TABLES for table in _TABLES[genre] if genre in profile.genres]
    tables += [*_KOREAN, _HANJA_PARTS if profile.hanja == "none" else _HANJA]
    return (table for table in tables if table.language in {"", *profile.languages})
