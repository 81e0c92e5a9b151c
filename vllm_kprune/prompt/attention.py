"""Attention that each token of a prompt receives in one layer, without the [n, n] matrix.

A block of queries meets all keys in one matrix product into a buffer that is used again for every
block; two passes over it give the sums of rows (the softmax) and of columns (what is received).
Memory is O(block x n). Only the sums of the softmax leave the block, so nothing else is computed:
no values, no output projection.
Exact: a window or a causal mask is asked for, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Cancelled", "Mask", "Projections", "received", "rotary_angles"]

# Below this, exp needs no shift: neither it, nor a sum of a million of them, leaves float32.
_SAFE_LOGIT = 70.0


class Cancelled(Exception):
    """The caller asked to stop between two blocks."""


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
    """Queries [rows, heads, dim], already scaled, and keys [rows, kv heads, dim] before rotation.

    Token i of the prompt has row `places[i]`: in the first layer equal tokens share one.
    `angles` are cos and sin, [n, dim / 2] each, or None without positions; `dtype` is that of
    the products.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    places: torch.Tensor
    angles: tuple[torch.Tensor, torch.Tensor] | None
    dtype: torch.dtype

    def rotated(self, table: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Tokens [start, stop) of a table [rows, some heads, dim], as [some heads, tokens, dim]."""
        x = table[self.places[start:stop]].transpose(0, 1)
        if self.angles is None:
            return x.to(self.dtype)
        cos, sin = (angle[start:stop] for angle in self.angles)
        half = x.shape[-1] // 2
        out = torch.empty(x.shape, dtype=self.dtype)
        out[..., :half] = x[..., :half] * cos - x[..., half:] * sin
        out[..., half:] = x[..., half:] * cos + x[..., :half] * sin
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
    cancelled: Callable[[], bool] | None = None,
) -> torch.Tensor:
    """Mean over `heads` and `queries` of the attention that each token receives: float32 [n].

    Source: LitePruner, section 2, IS(x_i) = avg([h, n_q, i]).

    Raises:
        Cancelled: `cancelled`, asked before each block, was true.
    """
    length, group = len(prompt.places), prompt.queries.shape[1] // prompt.keys.shape[1]
    sums = torch.zeros(length)
    if not queries:
        return sums
    scratch = _Scratch(prompt.dtype)
    for kv_head in range(prompt.keys.shape[1]):
        members = [head for head in heads if head // group == kv_head]
        if not members:
            continue
        keys = prompt.rotated(prompt.keys[:, kv_head : kv_head + 1], 0, length)[0]
        longest = float(torch.linalg.vector_norm(keys, dim=1, dtype=torch.float32).max())
        table = prompt.queries[:, members]
        for start in range(queries.start, queries.stop, block):
            if cancelled is not None and cancelled():
                raise Cancelled
            stop = min(start + block, queries.stop)
            first, last = mask.span(start, stop, length)
            rows = prompt.rotated(table, start, stop).reshape(-1, keys.shape[1])
            logits = scratch.product(rows, keys[first:last])
            bound = longest * float(torch.linalg.vector_norm(rows, dim=1).max())
            _cap_and_hide(logits, softcap, mask.hidden(start, stop, first, last))
            _add_columns(sums[first:last], logits, min(bound, softcap or bound))
    return sums.div_(len(heads) * len(queries))


class _Scratch:
    """Buffers for a block's logits, used again for every block."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._products = torch.empty(0, dtype=dtype)
        self._logits = self._products if dtype == torch.float32 else torch.empty(0)

    def product(self, rows: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Float32 [rows, keys] of scalar products."""
        shape = (len(rows), len(keys))
        if self._products.numel() < shape[0] * shape[1]:
            same = self._logits is self._products
            self._products = self._products.new_empty(shape[0] * shape[1])
            self._logits = self._products if same else torch.empty(self._products.shape)
        products = self._products[: shape[0] * shape[1]].view(shape)
        torch.mm(rows, keys.T, out=products)
        if self._logits is self._products:
            return products
        return self._logits[: products.numel()].view(shape).copy_(products)


def _cap_and_hide(logits: torch.Tensor, softcap: float | None, hidden: torch.Tensor | None) -> None:
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    if hidden is not None:
        logits.view(-1, *hidden.shape).masked_fill_(hidden, -torch.inf)


def _add_columns(sums: torch.Tensor, logits: torch.Tensor, bound: float) -> None:
    """Add the column sums of the rows' softmax; `logits` are lost. None is above `bound`."""
    if bound > _SAFE_LOGIT:
        logits.sub_(logits.amax(dim=1, keepdim=True))
    logits.exp_()
    shares = logits.sum(dim=1).reciprocal_()
    sums.addmv_(logits.T, shares)
