"""Attention that each token of a prompt receives in one layer, without the [n, n] matrix.

A block of queries meets all keys in one matrix product into a buffer that is used again for every
block; two passes over it give the sums of rows (the softmax) and of columns (what is received).
Memory is O(block x n). Nothing else of the layer is computed: no values, no output projection.
A window or a causal mask is asked for, never assumed; and so are rounded products (`products`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from vllm_kprune.prompt.layer_config import Precision
from vllm_kprune.prompt.products import ExactProducts, Int8Products, Products
from vllm_kprune.prompt.tokens import Cancelled, IsCancelled

__all__ = ["LOG2_E", "Mask", "Projections", "received", "rotary_angles"]

# Logits are kept in base 2: exp2 takes a third of exp's time. Queries are scaled by this.
LOG2_E = math.log2(math.e)
# Sums of exp2 between these lost nothing in float32 that counts, though no maximum was subtracted.
_SAFE_SUMS = (1e-25, 1e36)
# Shorter prompts cost little and have large scores: they are always computed in float32.
_ROUNDED_FROM = 512


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees: all; with `causal` none after it; with `window` |i - j| < window."""

    causal: bool = False
    window: int | None = None

    def span(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """Keys [first, last) that any query of [start, stop) sees."""
        first = 0 if self.window is None else max(0, start - self.window + 1)
        last = length if self.window is None else min(length, stop + self.window - 1)
        return first, min(last, stop) if self.causal else last

    def hidden(self, start: int, stop: int, first: int, last: int) -> torch.Tensor | None:
        """Boolean [queries, keys] of what is not seen in a block, or None: everything is."""
        queries = torch.arange(start, stop)[:, None]
        keys = torch.arange(first, last)[None, :]
        hidden = keys > queries if self.causal else None
        if self.window is not None and max(stop - 1 - first, last - 1 - start) >= self.window:
            outside = (keys - queries).abs_() >= self.window
            hidden = outside if hidden is None else hidden.logical_or_(outside)
        return hidden


@dataclass(frozen=True)
class Projections:
    """Queries [heads, rows, dim], scaled, and keys [kv heads, rows, dim] before rotation, float32.

    Token i of the prompt has row `places[i]`: in the first layer equal tokens share one.
    `angles` are cos and sin, [n, dim / 2] each, or None without positions. Products of queries and
    keys, scaled by the logit scale and `LOG2_E`, are logits in base 2.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    places: torch.Tensor
    angles: tuple[torch.Tensor, torch.Tensor] | None

    def rotated(self, table: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Tokens [start, stop) of a table [some heads, rows, dim]: [some heads, tokens, dim]."""
        x = table.index_select(1, self.places[start:stop])
        if self.angles is None:
            return x
        cos, sin = (angle[start:stop] for angle in self.angles)
        left, right = x.chunk(2, dim=-1)
        out = torch.empty(x.shape)
        turned_left, turned_right = out.chunk(2, dim=-1)
        torch.mul(left, cos, out=turned_left).addcmul_(right, sin, value=-1)
        torch.mul(right, cos, out=turned_right).addcmul_(left, sin)
        return out


def rotary_angles(frequencies: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, [length, dim / 2] each, of positions counted from 0."""
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin_()


def received(
    prompt: Projections,
    heads: Sequence[int],
    queries: range,
    *,
    mask: Mask,
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
    length, group = len(prompt.places), len(prompt.queries) // len(prompt.keys)
    sums = torch.zeros(length)
    if not queries:
        return sums
    rounded = precision == "int8" and length >= _ROUNDED_FROM
    products = Int8Products(centred=softcap is None) if rounded else ExactProducts()
    logits = _Logits(products, softcap)
    for kv_head in range(len(prompt.keys)):
        members = [head for head in heads if head // group == kv_head]
        if not members:
            continue
        keys = prompt.rotated(prompt.keys[kv_head : kv_head + 1], 0, length)[0]
        whole = slice(kv_head * group, (kv_head + 1) * group)  # not copied, unlike some heads
        table = prompt.queries[whole] if len(members) == group else prompt.queries[members]
        for start in range(queries.start, queries.stop, block):
            if cancelled is not None and cancelled():
                raise Cancelled
            stop = min(start + block, queries.stop)
            asking = prompt.rotated(table, start, stop)
            if start == queries.start:
                products.set_keys(keys, asking)
            first, last = mask.span(start, stop, length)
            products.set_queries(asking, first, last)
            hidden = mask.hidden(start, stop, first, last)
            for powers, totals in logits.powers(asking.shape[:2], last - first, hidden):
                sums[first:last].addmv_(powers.T, totals.reciprocal_())
    return sums.div_(len(heads) * len(queries))


class _Logits:
    """Logits in base 2 of blocks of queries, in a buffer that is used again."""

    def __init__(self, products: Products, softcap: float | None) -> None:
        self._products = products
        self._softcap = None if softcap is None else softcap * LOG2_E
        self._buffer = torch.empty(0)
        self._shifted = False

    def powers(
        self, queries: Sequence[int], keys: int, hidden: torch.Tensor | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """2 to the logits of the products' queries [heads, block] and `keys` keys, and row sums.

        One head [block, keys] after the other, each row up to a factor, in the same buffer. Its
        maximum is only subtracted from a row once a block turned out to need it.
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
                if _SAFE_SUMS[0] < low and high < _SAFE_SUMS[1]:
                    yield powers, totals
                    continue
                self._shifted = True
            self._write(head, logits, hidden)
            powers = logits.sub_(logits.amax(dim=1, keepdim=True)).exp2_()
            yield powers, powers.sum(dim=1)

    def _write(self, head: int, logits: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        self._products.write(head, logits)
        if self._softcap is not None:
            logits.div_(self._softcap).tanh_().mul_(self._softcap)
        return logits if hidden is None else logits.masked_fill_(hidden, -torch.inf)
