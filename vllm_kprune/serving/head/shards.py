"""Which rank of a tensor-parallel group has which row of a pruned head, and at what place.

vLLM gives each rank a range of a layer's rows. The rows of a profile are the first ones of an
order, so ranges of that order would leave all work on a small profile to the first ranks. Therefore
the order is dealt out like cards: every rank has an equal part of each profile, at the beginning of
its range. On one rank nothing changes.
"""

from dataclasses import dataclass

import numpy as np

from vllm_kprune.arrays import Integers

__all__ = ["Shards", "deal"]


@dataclass(frozen=True, eq=False)
class Shards:
    """Ranks and places of `count` rows, in their order.

    `rank` and `place` [count]: the rank of each row, and its place in that rank's range. There are
    `ranks` ranges of `size` rows, with padding at the end of the last one, or of several.
    """

    rank: Integers
    place: Integers
    ranks: int
    size: int

    @property
    def order(self) -> Integers:
        """For each row of vLLM's layer the number of the row that is stored there."""
        # Padding is at the end of all ranges, so what is stored before it has no gaps.
        return np.argsort(self.rank * self.size + self.place)

    def width(self, end: int) -> int:
        """How many rows of its range each rank computes for the first `end` rows.

        All of them if all have a place. Otherwise one more than is needed, unless the range ends:
        so there is always an `unused` column.
        """
        if end == len(self.place):
            return self.size
        return min(int(self.place[:end].max()) + 2, self.size)

    def columns(self, end: int) -> Integers:
        """The columns of the first `end` rows in the gathered logits of all ranks."""
        return self.rank[:end] * self.width(end) + self.place[:end]

    def unused(self, end: int) -> int:
        """A column of these logits that none of the first `end` rows has."""
        # The last rank gets its rows last, and its range is never full.
        return self.ranks * self.width(end) - 1


def deal(count: int, ranks: int, size: int) -> Shards:
    """Deal `count` rows out to ranges of `size` rows, of which the last ones may not be full.

    >>> shards = deal(5, ranks=2, size=4)
    >>> shards.rank.tolist(), shards.place.tolist()
    ([0, 1, 0, 0, 0], [0, 0, 1, 2, 3])
    """
    numbers = np.arange(count)
    rank, place = numbers // size, numbers % size
    dealt = np.lexsort((rank, place))
    return Shards(rank[dealt], place[dealt], ranks, size)
