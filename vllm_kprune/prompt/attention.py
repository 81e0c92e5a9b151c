"""Attention that each token of a prompt receives in one layer, without the [n, n] matrix.

The score of token i is the mean over queries j of softmax(row j)[i]: a column sum of the attention
matrix, whose rows have to be normalised first. Both can be done for a block of rows at a time:

    logits, 2 of 4 rows   exp             row sums    rows / sums      add to the columns
    [0   1   0   0]       [1   e   1   1]   3 + e     [.17 .48 .17 .17]
    [2   0   0   0]       [e^2 1   1   1]   3 + e^2   [.71 .10 .10 .10]   [.89 .57 .27 .27]

The other two rows follow in the same buffer, and the sums divided by 4 are the scores. So memory is
O(block x n). The division and the column sum are one product of a matrix and a vector. Values and
the output projection are not needed. A window, a causal mask and rounded products (`products`) are
options.

>>> ones = Projections(torch.ones(1, 1, 2), torch.ones(1, 1, 2), torch.zeros(4).long(), None)
>>> how = {"softcap": None, "block": 2, "precision": "float32"}
>>> received(ones, [0], range(4), mask=AttentionMask(), **how).tolist()
[0.25, 0.25, 0.25, 0.25]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from vllm_kprune.prompt.layer_config import Precision
from vllm_kprune.prompt.products import ExactProducts, Int8Products, Products
from vllm_kprune.prompt.tokens import Cancelled, IsCancelled

__all__ = ["LOG2_E", "AttentionMask", "Projections", "received", "rotary_angles"]

# Queries are scaled by this: 2 ** (x * log2 e) = e ** x, and exp2 takes a third of exp's time.
LOG2_E = math.log2(math.e)
# A softmax usually subtracts the maximum of a row, so that nothing overflows. That takes a pass
# over the buffer. It is skipped while all row sums are between these: nothing that matters is lost.
# Float32 reaches from 1.2e-38 to 3.4e38: beside a sum of 1e-25, a power that vanishes is at most
# 1e-13 of it.
_SAFE_SUMS = (1e-25, 1e36)
# Shorter prompts are always computed in float32: they take little time and have large scores.
_ROUNDED_FROM = 512


@dataclass(frozen=True)
class AttentionMask:
    """Which keys a query sees: all; if `causal` none after it; with `window`, |i - j| < window."""

    causal: bool = False
    window: int | None = None

    def span(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """The keys [first, last) that at least one query of [start, stop) sees."""
        # The window looks both ways: query i sees keys i - window + 1 to i + window - 1.
        first = 0 if self.window is None else max(0, start - self.window + 1)
        last = length if self.window is None else min(length, stop + self.window - 1)
        return first, min(last, stop) if self.causal else last

    def hidden(self, start: int, stop: int, first: int, last: int) -> torch.Tensor | None:
        """[queries, keys] -inf for what a query cannot see, else 0; None if all see everything."""
        queries = torch.arange(start, stop)[:, None]
        keys = torch.arange(first, last)[None, :]
        hidden = keys > queries if self.causal else None
        # The largest distance in this block; below the window, nothing of it is hidden.
        if self.window is not None and max(stop - 1 - first, last - 1 - start) >= self.window:
            outside = (keys - queries).abs_() >= self.window
            hidden = outside if hidden is None else hidden.logical_or_(outside)
        # A query always sees itself. So no row is all -inf, and no softmax divides 0 by 0. Added,
        # because to fill what a boolean mask hides takes ten times as long.
        if hidden is None:
            return None
        return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)


@dataclass(frozen=True)
class Projections:
    """Queries [heads, rows, dim] and keys [kv heads, rows, dim] before rotation, in float32.

    Token i of the prompt has row `places[i]`: in the first layer, equal tokens share a row.
    `angles` are cos and sin, [n, dim / 2] each, or None without positions. Queries are scaled by
    the logit scale and `LOG2_E`, so products of queries and keys are logits in base 2.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    places: torch.Tensor
    angles: tuple[torch.Tensor, torch.Tensor] | None

    def rotated(self, table: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Rotated rows of a `table` [heads, rows, dim] for tokens [start, stop)."""
        # Rows are spread to their places first: equal tokens elsewhere turn by other angles.
        x = table.index_select(1, self.places[start:stop])
        if self.angles is None:
            return x
        cos, sin = (angle[start:stop] for angle in self.angles)
        # Dimensions d and d + dim / 2 are a pair, turned by the angle of the token's position.
        left, right = x.chunk(2, dim=-1)
        out = torch.empty(x.shape)
        turned_left, turned_right = out.chunk(2, dim=-1)
        torch.mul(left, cos, out=turned_left).addcmul_(right, sin, value=-1)
        torch.mul(right, cos, out=turned_right).addcmul_(left, sin)
        return out


def rotary_angles(frequencies: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, [length, dim / 2] each, for positions from 0."""
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin_()


def received(
    prompt: Projections,
    heads: Sequence[int],
    queries: range,
    *,
    mask: AttentionMask,
    softcap: float | None,
    block: int,
    precision: Precision,
    cancelled: IsCancelled | None = None,
) -> torch.Tensor:
    """Mean over `heads` and `queries` of the attention that each token receives: float32 [n].

    Source: LitePruner, section 2, IS(x_i) = avg([h, n_q, i]).

    Raises:
        Cancelled: `cancelled`, asked before each block, was true.
    """
    length = len(prompt.places)
    sums = torch.zeros(length)
    if not queries:
        return sums
    rounded = precision == "int8" and length >= _ROUNDED_FROM
    products = Int8Products(centred=softcap is None) if rounded else ExactProducts()
    logits = _Logits(products, softcap)
    place, hidden = None, None
    for keys, table in _head_groups(prompt, heads):
        for start in range(queries.start, queries.stop, block):
            if cancelled is not None and cancelled():
                raise Cancelled
            stop = min(start + block, queries.stop)
            asking = prompt.rotated(table, start, stop)
            if start == queries.start:
                # Keys stay for all blocks; the first block of queries is the sample.
                products.set_keys(keys, asking)
            first, last = mask.span(start, stop, length)
            products.set_queries(asking, first, last)
            # It depends on relative positions only: with a window, most blocks have the same.
            here = (first - start, last - start, stop - start)
            if here != place:
                place, hidden = here, mask.hidden(start, stop, first, last)
            for powers, totals in logits.powers(asking.shape[:2], last - first, hidden):
                # [keys, rows] @ [rows]: divides each row by its sum and adds it to the columns.
                sums[first:last].addmv_(powers.T, totals.reciprocal_())
    return sums.div_(len(heads) * len(queries))


def _head_groups(
    prompt: Projections, heads: Sequence[int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each key-value head in use, its rotated keys [n, dim] and the table of its query heads.

    With grouped-query attention, several query heads share a key-value head.
    """
    group = len(prompt.queries) // len(prompt.keys)
    for kv_head in range(len(prompt.keys)):
        members = [head for head in heads if head // group == kv_head]
        if not members:
            continue
        keys = prompt.rotated(prompt.keys[kv_head : kv_head + 1], 0, len(prompt.places))[0]
        whole = slice(kv_head * group, (kv_head + 1) * group)  # a slice is not copied; a list is
        yield keys, prompt.queries[whole] if len(members) == group else prompt.queries[members]


class _Logits:
    """Logits in base 2 for blocks of queries, in one buffer for all blocks."""

    def __init__(self, products: Products, softcap: float | None) -> None:
        self._products = products
        # c * tanh(x / c) keeps its form if c is taken in base 2 like x.
        self._softcap = None if softcap is None else softcap * LOG2_E
        self._buffer = torch.empty(0)
        self._shifted = False

    def powers(
        self, queries: Sequence[int], keys: int, hidden: torch.Tensor | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield, head by head, 2 ** logits as [block, keys] and their row sums as [block].

        `queries` is (heads, block). All heads use the same buffer, so each result is valid only
        until the next. A row may be off by a factor, which its sum has too: maxima are subtracted
        once a block needed it, and then for all later blocks.
        """
        heads, rows = queries
        if self._buffer.numel() < rows * keys:
            self._buffer = self._buffer.new_empty(rows * keys)
        logits = self._buffer[: rows * keys].view(rows, keys)
        for head in range(heads):
            if not self._shifted:
                powers = self._write(head, logits, hidden).exp2_()
                totals = powers.sum(dim=1)
                low, high = (float(limit) for limit in totals.aminmax())
                # False for infinity and NaN as well.
                if _SAFE_SUMS[0] < low and high < _SAFE_SUMS[1]:
                    yield powers, totals
                    continue
                self._shifted = True
            # exp2_ has overwritten the logits, so they are computed again.
            self._write(head, logits, hidden)
            powers = logits.sub_(logits.amax(dim=1, keepdim=True)).exp2_()
            yield powers, powers.sum(dim=1)

    def _write(self, head: int, logits: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        self._products.write(head, logits)
        if self._softcap is not None:
            logits.div_(self._softcap).tanh_().mul_(self._softcap)
        return logits if hidden is None else logits.add_(hidden)
