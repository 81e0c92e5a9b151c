"""Which rows of an LM head are computed if the head alone is pruned: token ids stay the original's.

The rows of several profiles are put in one order: those of the smallest profile first, then what
the next one adds, and so on. So the rows of each profile that contains the smaller ones are the
first rows of that order, and one copy of the head serves all of them. Selecting tokens takes
seconds, so what a profile keeps is remembered in kprune's cache. How vLLM uses the rows is decided
in `serving/head`.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from vllm_kprune.checkpoint.base import TokenizerFolder, open_original_tokenizer
from vllm_kprune.checkpoint.cached import entry_name
from vllm_kprune.checkpoint.plan import choose_tokens, evidence_sources
from vllm_kprune.errors import KPruneError
from vllm_kprune.profile import Corpus, Profile
from vllm_kprune.progress import Progress, silent
from vllm_kprune.storage.bounded import Limits, parse_json, read_bytes
from vllm_kprune.storage.cache import cache_dir, cache_folder
from vllm_kprune.storage.folders import new_file

__all__ = ["MOST_PROFILES", "HeadRows", "head_rows", "order_rows"]

_IDS = Limits(bytes=1 << 24, values=1 << 21)  # a million ids take 8 MB
MOST_PROFILES = 8  # one bit of a byte for each


@dataclass(frozen=True, eq=False)
class HeadRows:
    """The rows of a pruned head, in the order in which they are stored.

    `ids` [rows], int32: the token id of each row. `profiles` are names, the server's default first.
    `ends`: for each profile, how many of the first rows have all that it keeps. `members` [largest
    id + 1], uint8: bit p of a token id is set if profile p keeps it. `tokens`: how many each
    profile keeps; for a profile that is nested in the order that is its end.
    """

    ids: npt.NDArray[np.int32]
    profiles: tuple[str, ...]
    ends: tuple[int, ...]
    members: npt.NDArray[np.uint8]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The number of tokens that each profile keeps."""
        bits = range(len(self.profiles))
        return tuple(int((self.members >> bit & 1).sum()) for bit in bits)

    def within(self, vocabulary: int) -> "HeadRows":
        """Without tokens that have no row in a head of `vocabulary` rows: Gemma-3's image token."""
        here = self.ids < vocabulary
        ends = tuple(int(here[:end].sum()) for end in self.ends)
        return HeadRows(self.ids[here], self.profiles, ends, self.members[:vocabulary])

    def kept(self, profile: int) -> npt.NDArray[np.int64]:
        """The ids that a profile keeps, increasing."""
        return np.flatnonzero(self.members >> profile & 1)


def head_rows(
    model: str | Path,
    profiles: Sequence[Profile],
    *,
    revision: str | None = None,
    corpora: Sequence[Corpus] = (),
    progress: Progress = silent,
) -> HeadRows:
    """The rows that `profiles` keep of the head of `model`, a folder or a hub id.

    Raises `KPruneError` for a model without a tokenizer that kprune can read, and for more than
    eight profiles or two of one name.
    """
    names = tuple(profile.name for profile in profiles)
    if not 1 <= len(names) <= MOST_PROFILES:
        raise KPruneError(f"got {len(names)} profiles for the head, expected 1 to {MOST_PROFILES}")
    if len(set(names)) < len(names):
        raise KPruneError(f"profiles of one name for the head: {', '.join(names)}; rename one")
    base = open_original_tokenizer(model, revision)
    keeps_all = all(profile.keeps_everything for profile in profiles)
    kept = [
        # A corpus is for the profiles that select tokens.
        _kept_ids(base, one, () if one.keeps_everything and not keeps_all else corpora, progress)
        for one in profiles
    ]
    return order_rows(names, kept)


def order_rows(names: tuple[str, ...], kept: Sequence[Sequence[int]]) -> HeadRows:
    """Put what several profiles keep in one order.

    >>> rows = order_rows(("large", "small"), [[1, 2, 3, 5], [3, 5]])
    >>> rows.ids.tolist(), rows.ends
    ([3, 5, 1, 2], (4, 2))
    """
    members = np.zeros(max(map(max, kept)) + 1, np.uint8)
    for bit, ids in enumerate(kept):
        members[list(ids)] |= 1 << bit
    order: list[npt.NDArray[np.int64]] = []
    placed = np.zeros(len(members), bool)
    for bit in sorted(range(len(kept)), key=lambda bit: len(kept[bit])):
        mine = (members >> bit & 1).astype(bool)
        order.append(np.flatnonzero(mine & ~placed))
        placed |= mine
    rows = np.concatenate(order)
    place = np.empty(len(members), np.int64)
    place[rows] = np.arange(len(rows))
    # Of a profile that is not nested, the last of its rows may be behind rows that it lacks.
    ends = tuple(int(place[list(one)].max()) + 1 for one in kept)
    return HeadRows(rows.astype(np.int32), names, ends, members)


def _kept_ids(
    base: TokenizerFolder, profile: Profile, corpora: Sequence[Corpus], progress: Progress
) -> list[int]:
    """What a profile keeps, from the cache if it is there."""
    sources = evidence_sources(profile, corpora)
    digests = base.digests(memory=cache_dir() / "digests")
    name = entry_name(base, profile, sources, digests)
    target = cache_folder("heads") / f"{name}.json"
    with FileLock(target.with_suffix(".lock")):
        if (known := _remembered(target)) is not None:
            return known
        selection, _ = choose_tokens(base, profile, sources, progress)
        # A full disk costs the next start a few seconds, no more.
        with suppress(OSError), new_file(target) as stream:
            stream.write(json.dumps(selection.kept_ids).encode())
        return list(selection.kept_ids)


def _remembered(path: Path) -> list[int] | None:
    """The ids in a cache entry; None if there is none, or it is damaged."""
    try:
        ids = parse_json(read_bytes(path, _IDS.bytes), _IDS)
    except KPruneError:
        return None
    whole = isinstance(ids, list) and ids and all(type(i) is int and i >= 0 for i in ids)
    return ids if whole and ids == sorted(set(ids)) else None
