"""Refused tokens become -inf in logits, in place.

A step should cost no more than the memory traffic of its logits, so how rows are written depends on
how many tokens a state refuses (`benchmarks/guard.py` measures all ways; `masked_fill_` is 13 to 30
times slower than `minimum` on CPUs, where it is not vectorised):

- few (a pruned vocabulary): `index_fill_` of their ids;
- many: `minimum` with a row that is -inf at refused tokens and +inf elsewhere;
- nearly all (inside a character): the few allowed logits are put aside, the rest is filled.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

import torch

from vllm_kprune.guard.automaton import Automaton

__all__ = ["FEW", "Groups", "TokenMask"]

Groups: TypeAlias = Mapping[tuple[Automaton, int], Sequence[int]]
# Ids are few when they are at most this share of the row: from there on a pass over it is faster.
FEW = 1 / 16
# Three passes over this much of the logits find it in a CPU's cache.
_CACHED_BYTES = 4 << 20
# So many columns from the left, where BPE has its most frequent tokens, mostly hold a logit that is
# larger than that of every refused one.
_FREQUENT_COLUMNS = 8192


class TokenMask:
    """What one device needs of automatons; made on first use, kept until `forget`.

    Memory: a row of the logits' type for state 0 where a state refuses many tokens (1 MB in float32
    for 262,144 tokens), a list of ids for the others (some kB at most).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._refusals: dict[tuple[Automaton, int, torch.dtype], _Refusal] = {}

    def apply_(
        self, logits: torch.Tensor, groups: Groups, changed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Write -inf to refused tokens; returns `logits`, float [rows, num_rows].

        `groups`: (automaton, state) -> the rows in that state; rows in no group are left alone.
        `changed`, bool [rows]: becomes True for rows of which a refused token had the largest
        logit, False for the groups' other rows. A tie with an allowed token is no change.
        """
        for (automaton, state), rows in groups.items():
            refusal = self._refusal(automaton, state, logits.dtype)
            for first, last in _runs(rows):
                block = logits[first:last]
                if changed is None:
                    refusal.fill_(block)
                else:
                    refusal.fill_and_compare_(block, changed[first:last])
        return logits

    def forget(self, automaton: Automaton) -> None:
        """Free what an automaton needed here."""
        for key in [key for key in self._refusals if key[0] is automaton]:
            del self._refusals[key]

    def _refusal(self, automaton: Automaton, state: int, dtype: torch.dtype) -> "_Refusal":
        key = (automaton, state, dtype)
        if key not in self._refusals:
            self._refusals[key] = _refusal_of(automaton.refused(state), self._device, dtype)
        return self._refusals[key]


class _Refusal(Protocol):
    """One way to refuse tokens, on logits [rows, num_rows]."""

    def fill_(self, block: torch.Tensor) -> None:
        """Write -inf."""

    def fill_and_compare_(self, block: torch.Tensor, changed: torch.Tensor) -> None:
        """Write -inf, and whether the largest logit went, to `changed`, bool [rows]."""


def _refusal_of(refused: torch.Tensor, device: torch.device, dtype: torch.dtype) -> _Refusal:
    num_refused, most = int(refused.sum()), int(len(refused) * FEW)
    if num_refused <= most:
        return _RefuseFew(refused.nonzero().flatten().to(device))
    if 0 < len(refused) - num_refused <= most:
        return _AllowFew((~refused).nonzero().flatten().to(device))
    ceiling = torch.full((len(refused),), torch.inf, dtype=dtype)
    return _RefuseMany(ceiling.masked_fill_(refused, -torch.inf).to(device))


class _RefuseFew:
    def __init__(self, refused_ids: torch.Tensor) -> None:
        self._refused_ids = refused_ids

    def fill_(self, block: torch.Tensor) -> None:
        block.index_fill_(1, self._refused_ids, -torch.inf)

    def fill_and_compare_(self, block: torch.Tensor, changed: torch.Tensor) -> None:
        if not len(self._refused_ids):
            changed.fill_(False)
            return
        highest = block.index_select(1, self._refused_ids).amax(dim=-1)
        self.fill_(block)
        if block.device.type != "cpu":
            torch.gt(highest, block.amax(dim=-1), out=changed)
            return
        frequent = block[:, :_FREQUENT_COLUMNS].amax(dim=-1)
        changed.fill_(False)
        for row, (refused, allowed) in enumerate(
            zip(highest.tolist(), frequent.tolist(), strict=True)
        ):
            if refused > allowed:  # which other columns may still make up for
                changed[row] = refused > block[row].amax()


class _RefuseMany:
    def __init__(self, ceiling: torch.Tensor) -> None:
        self._ceiling = ceiling

    def fill_(self, block: torch.Tensor) -> None:
        torch.minimum(block, self._ceiling, out=block)

    def fill_and_compare_(self, block: torch.Tensor, changed: torch.Tensor) -> None:
        rows = len(block)
        if block.device.type == "cpu":
            rows = max(1, _CACHED_BYTES // self._ceiling.nbytes)
        for first in range(0, len(block), rows):
            part = block[first : first + rows]
            highest = part.amax(dim=-1)
            self.fill_(part)
            torch.gt(highest, part.amax(dim=-1), out=changed[first : first + rows])


class _AllowFew:
    def __init__(self, allowed_ids: torch.Tensor) -> None:
        self._allowed_ids = allowed_ids

    def fill_(self, block: torch.Tensor) -> None:
        kept = block.index_select(1, self._allowed_ids)
        block.fill_(-torch.inf).index_copy_(1, self._allowed_ids, kept)

    def fill_and_compare_(self, block: torch.Tensor, changed: torch.Tensor) -> None:
        highest = block.amax(dim=-1)
        self.fill_(block)
        allowed = block.index_select(1, self._allowed_ids)
        torch.gt(highest, allowed.amax(dim=-1), out=changed)


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of neighbouring rows: (first, last + 1)."""
    ordered = sorted(rows)
    first = 0
    for n in range(1, len(ordered) + 1):
        if n == len(ordered) or ordered[n] != ordered[n - 1] + 1:
            yield ordered[first], ordered[n - 1] + 1
            first = n
