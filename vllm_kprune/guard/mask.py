"""Set the logits of refused tokens to -inf, in place.

A step should cost no more than the memory traffic of its logits. So the way to write a row depends
on how many tokens a state refuses:

- few (a pruned vocabulary): `index_fill_` at their ids;
- many: `minimum` with a row that is -inf at refused tokens and +inf elsewhere;
- nearly all (inside a character): save the few allowed logits, fill the row, put them back.

`masked_fill_` is not used: on CPUs it is not vectorised, and 13 to 30 times slower than `minimum`.
`benchmarks/guard.py` measures all ways.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeAlias

import torch

from vllm_kprune.guard.automaton import Automaton

__all__ = ["FEW", "Groups", "TokenMask"]

Groups: TypeAlias = Mapping[tuple[Automaton, int], Sequence[int]]
# Up to this share of a row, writing single ids is faster than a pass over the row.
FEW = 1 / 16
# Three passes over the logits are made in blocks of this size, which stay in a CPU's cache.
_CACHED_BYTES = 4 << 20
# BPE has its most frequent tokens at low ids. So these first columns usually have a logit above
# those of all refused tokens, and the other columns need not be read.
_FREQUENT_COLUMNS = 8192


class TokenMask:
    """Applies automatons to logits on one device.

    What a state needs is made on first use and kept until `forget`: a row of the logits' type if it
    refuses many tokens (1 MB in float32 for 262,144 tokens; usually only state 0), otherwise a list
    of ids (a few kB).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._refusals: dict[tuple[Automaton, int, torch.dtype], _Refusal] = {}

    def apply_(
        self, logits: torch.Tensor, groups: Groups, changed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Write -inf to refused tokens; returns `logits`, float [rows, num_rows].

        `groups`: (automaton, state) -> the rows in that state. Rows in no group are not touched.
        `changed`, bool [rows], becomes True for rows where a refused token had the largest logit,
        and False for the other rows of the groups. A tie with an allowed token does not count.
        """
        for (automaton, state), rows in groups.items():
            refusal = self._refusal(automaton, state, logits.dtype)
            # A slice is a view, written in place; indexing by a list of rows would make a copy.
            for first, last in _runs(rows):
                block = logits[first:last]
                if changed is None:
                    refusal.fill_(block)
                else:
                    refusal.fill_and_compare_(block, changed[first:last])
        return logits

    def forget(self, automaton: Automaton) -> None:
        """Free the memory that an automaton uses here."""
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
        """Write -inf, and to `changed`, bool [rows], whether the largest logit was refused."""


def _refusal_of(refused: torch.Tensor, device: torch.device, dtype: torch.dtype) -> _Refusal:
    num_refused, most = int(refused.sum()), int(len(refused) * FEW)
    if num_refused <= most:
        return _RefuseFew(refused.nonzero().flatten().to(device))
    if 0 < len(refused) - num_refused <= most:
        return _AllowFew((~refused).nonzero().flatten().to(device))
    # In the logits' own type, so that `minimum` converts nothing.
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
        # Before the refused logits are overwritten.
        highest = block.index_select(1, self._refused_ids).amax(dim=-1)
        self.fill_(block)
        # On a GPU, reading values as below would wait for the device.
        if block.device.type != "cpu":
            torch.gt(highest, block.amax(dim=-1), out=changed)
            return
        frequent = block[:, :_FREQUENT_COLUMNS].amax(dim=-1)
        changed.fill_(False)
        for row, (refused, allowed) in enumerate(
            zip(highest.tolist(), frequent.tolist(), strict=True)
        ):
            if refused > allowed:  # unless another column has a larger allowed logit
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
        # A copy, so that the fill does not reach it.
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
