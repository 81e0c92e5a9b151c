"""Options that several commands share: declared once, with their help, as types for Typer."""

from pathlib import Path
from typing import Annotated

import typer

from vllm_kprune.profile import Profile, load_profile

__all__ = [
    "CorpusOption",
    "CoverageOption",
    "ForceOption",
    "JsonOption",
    "MaxExtraTokensOption",
    "ProfileOption",
    "RevisionOption",
    "TargetSizeOption",
    "TextOption",
    "sized_profile",
]

ProfileOption = Annotated[
    str,
    typer.Option("--profile", help="Profile by name (enko, original), or your own .yaml file."),
]
CorpusOption = Annotated[
    list[Path],
    typer.Option(
        "--corpus",
        help="Your own text as evidence (.txt, .jsonl, also .gz or .zst); repeat for several.",
    ),
]
TargetSizeOption = Annotated[
    int | None, typer.Option("--target-size", help="Keep exactly this many tokens.")
]
CoverageOption = Annotated[
    float | None,
    typer.Option(
        "--coverage", help="Keep tokens until this share of the evidence is covered (0.999)."
    ),
]
MaxExtraTokensOption = Annotated[
    float | None,
    typer.Option(
        "--max-extra-tokens",
        help="Keep as few tokens as cost at most this share of extra tokens (0.01) on each source "
        "of evidence and each --corpus; measured, so it takes longer.",
    ),
]
TextOption = Annotated[
    list[Path],
    typer.Option(
        "--text", help="Your own text (.txt, .jsonl, also .gz or .zst); repeat for several."
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit on the hub.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace what kprune wrote there before.")
]
JsonOption = Annotated[
    str | None, typer.Option("--json", help="Write the figures as JSON; - prints them.")
]


def sized_profile(
    name: str,
    target_size: int | None,
    coverage: float | None,
    max_extra_tokens: float | None,
) -> Profile:
    """The profile, with the sizing of the command line instead of its own, if there is one."""
    return load_profile(
        name, target_size=target_size, coverage=coverage, max_extra_tokens=max_extra_tokens
    )
