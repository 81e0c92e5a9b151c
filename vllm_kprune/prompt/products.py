"""Products of queries and keys: exact in float32, or in a quarter of the time with int8.

What rounding to 8 bits loses would not average out where it matters, at the few keys that attract
most queries. So queries and keys are centred first, and the product of the queries' mean, which
every key has in common with all of them, stays in float32 (a term that only depends on the query
has no part in a softmax); and each dimension is scaled so that queries and keys are equally large
there (SmoothQuant, Xiao et al. 2023, section 4, with root mean squares). Each token has a scale of
its own. The errors of what a token receives are then those of bfloat16.
"""

from functools import cache
from typing import Protocol

import torch

from vllm_kprune.errors import KPruneError

__all__ = ["ExactProducts", "Int8Products", "Products", "check_int8"]

_LARGEST = 127
_TINY = 1e-20


class Products(Protocol):
    """Scalar products of blocks of queries with the keys of one head."""

    def set_keys(self, keys: torch.Tensor, asking: torch.Tensor) -> None:
        """Take keys, float32 [n, dim]; `asking` are some queries of theirs, [heads, some, dim]."""

    def set_queries(self, queries: torch.Tensor, first: int, last: int) -> None:
        """Take queries, float32 [heads, rows, dim], for keys [first, last)."""

    def write(self, head: int, out: torch.Tensor) -> None:
        """Products of a head's queries and those keys to `out`, float32 [rows, last - first]."""


class ExactProducts:
    """In float32."""

    def set_keys(self, keys: torch.Tensor, asking: torch.Tensor) -> None:
        """As `Products` says."""
        self._keys = keys

    def set_queries(self, queries: torch.Tensor, first: int, last: int) -> None:
        """As `Products` says."""
        self._queries, self._seen = queries, self._keys[first:last].T

    def write(self, head: int, out: torch.Tensor) -> None:
        """As `Products` says."""
        torch.mm(self._queries[head], self._seen, out=out)


class Int8Products:
    """In int8, up to a term of the query alone (not if `centred` is off: a soft-cap needs it)."""

    def __init__(self, *, centred: bool) -> None:
        check_int8()
        self._centred = centred
        self._buffer = torch.empty(0, dtype=torch.int32)

    def set_keys(self, keys: torch.Tensor, asking: torch.Tensor) -> None:
        """As `Products` says."""
        self._keys = keys
        factors = keys - keys.mean(dim=0) if self._centred else keys
        spread = asking - asking.mean(dim=1, keepdim=True) if self._centred else asking
        sizes = factors.square().mean(dim=0), spread.square().mean(dim=(0, 1))
        larger = [size.sqrt_().clamp_min_(_TINY) for size in sizes]
        self._balance = larger[0].div_(larger[1]).sqrt_()
        self._factors, self._key_scales = _rounded(factors / self._balance)

    def set_queries(self, queries: torch.Tensor, first: int, last: int) -> None:
        """As `Products` says."""
        self._common = None
        if self._centred:
            mean = queries.mean(dim=1)
            queries = queries - mean[:, None]
            self._common = (self._keys[first:last] @ mean.T).T.contiguous()
        self._queries, self._query_scales = _rounded(queries * self._balance)
        self._seen, self._seen_scales = self._factors[first:last].T, self._key_scales[first:last, 0]

    def write(self, head: int, out: torch.Tensor) -> None:
        """As `Products` says."""
        if self._buffer.numel() < out.numel():
            self._buffer = self._buffer.new_empty(out.numel())
        products = self._buffer[: out.numel()].view(out.shape)
        torch._int_mm(self._queries[head], self._seen, out=products)
        out.copy_(products).mul_(self._seen_scales)
        if self._common is None:
            out.mul_(self._query_scales[head])
        else:
            torch.addcmul(self._common[head], out, self._query_scales[head], out=out)


@cache
def check_int8() -> None:
    """Raise `KPruneError` where int8 products are not exact.

    Processors without instructions for them (x86 before VNNI) add neighbouring products in 16 bits,
    which overflow.
    """
    rows = torch.full((32, 64), _LARGEST, dtype=torch.int8)
    for other in (rows, -rows):
        wanted = int(rows[0, 0]) * int(other[0, 0]) * rows.shape[1]
        if not (torch._int_mm(rows, other.T) == wanted).all():
            raise KPruneError(
                "this processor's int8 products overflow; rank with precision float32 here"
            )


def _rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Int8 of the same shape, and float32 scales [..., 1], whose product is about `x`."""
    scales = x.abs().amax(dim=-1, keepdim=True).div_(_LARGEST).clamp_min_(_TINY)
    return (x / scales).round_().to(torch.int8), scales
