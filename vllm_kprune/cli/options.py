"""Tables of options that several commands share."""

from dataclasses import dataclass
from pathlib import Path

from vllm_kprune.options import option
from vllm_kprune.profile import CorpusOptions, Profile, Sizing, load_profile

__all__ = [
    "BaseOptions",
    "BuildOptions",
    "ForceOptions",
    "JsonOptions",
    "LinkOptions",
    "ProfileOptions",
    "RevisionOptions",
    "TextOptions",
    "VerifyOptions",
]


@dataclass(frozen=True, kw_only=True)
class RevisionOptions:
    """Which version of a model on the hub."""

    revision: str | None = option(None, "Branch, tag or commit on the hub.")


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """Which profile a vocabulary is pruned to."""

    profile: str = option("enko", "Profile by name (enko, original), or your own .yaml file.")


# Options of the last base come first.
@dataclass(frozen=True, kw_only=True)
class BuildOptions(RevisionOptions, Sizing, CorpusOptions, ProfileOptions):
    """What a vocabulary is pruned to."""

    def sized_profile(self) -> Profile:
        """The profile, with the sizing of the command line instead of its own, if one is given."""
        return load_profile(self.profile, **self.one_sizing("--"))


@dataclass(frozen=True, kw_only=True)
class ForceOptions:
    """Whether something may be replaced."""

    force: bool = option(False, "Replace what kprune wrote there before.")


@dataclass(frozen=True, kw_only=True)
class JsonOptions:
    """Where a command writes its results for programs."""

    json_to: str | None = option(
        None, "Write the results as JSON to this file; - prints them.", flags=("--json",)
    )


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """The user's own text to measure or check."""

    text: tuple[Path, ...] = option(
        (), "Your own text (.txt, .jsonl, also .gz or .zst); repeat for several."
    )


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """Where an overlay's weights are."""

    base: Path | None = option(None, "Base model's folder, if it was moved.")


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Whether a result is checked before it is kept."""

    verify: bool = option(
        False,
        "Check the laws at the end, and all weights of a checkpoint; keep nothing if one is "
        "broken.",
    )


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """How a standalone checkpoint gets the weight files that do not change."""

    link: bool = option(
        False,
        "Hard-link weight files that do not change instead of copying them. This saves space, but "
        "editing one file in place then edits the base model too.",
        flags=("--link/--copy",),
    )
