"""Short texts of each genre, written for kprune: what a vocabulary costs on what people write.

They are measured, and never counted as evidence. `samples/` has a file for each; a line counts if
the profile's languages are written in its letters, so English profiles are not judged by Korean.
"""

from collections.abc import Iterator
from pathlib import Path

import regex

from vllm_kprune.profile import Profile
from vllm_kprune.vocabulary.scripts import SHARED_SCRIPTS, hanja_characters, letter_set

__all__ = ["genre_samples"]

_SAMPLES = Path(__file__).parent / "samples"


def genre_samples(profile: Profile) -> Iterator[tuple[str, str]]:
    """(name, text) of each sample that a profile's languages can be measured on."""
    scripts = sorted({*profile.scripts(), *SHARED_SCRIPTS})
    # V1: only there has `regex` sets within sets.
    readable = regex.compile(rf"(?V1){letter_set(*scripts)}*")
    hanja = dict.fromkeys(map(ord, hanja_characters(profile.hanja)))
    for path in sorted(_SAMPLES.glob("*.txt")):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if readable.fullmatch(line.translate(hanja))]
        if kept:
            yield path.stem, "".join(kept)
