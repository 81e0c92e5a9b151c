"""Products of queries and keys: exact in float32, or with int8 in a quarter of the time.

Rounding to 8 bits would hurt where it matters, at the few keys that attract most queries, because
there the errors do not average out. Three steps keep the errors as small as those of bfloat16:

1. Centre. With means q' and k' of queries and keys: q.k = (q - q').(k - k') + q'.k + (q - q').k'.
   The second term stays in float32: one product per key. The last one depends on the query alone,
   and a softmax does not change when a row gets a constant.
2. Balance (SmoothQuant, Xiao et al. 2023, section 4, with root mean squares). In each dimension d,
   keys are divided by b_d and queries multiplied by b_d, where b_d = sqrt(rms(k_d) / rms(q_d)). If
   keys are near 16 and queries near 1 there, b_d is 4 and both become 4.
3. Give each token a scale of its own: 127 stands for its largest dimension.

>>> numbers, scales = _rounded(torch.tensor([[1.0, -0.5, 0.26]]))
>>> numbers.tolist()
[[127, -64, 33]]
>>> [round(x, 3) for x in (numbers * scales)[0].tolist()]
[1.0, -0.504, 0.26]
"""

from functools import cache
from typing import Protocol

import torch

from vllm_kprune.errors import KPruneError

__all__ = ["ExactProducts", "Int8Products", "Products", "check_int8"]

# Not -128, so that x and -x are rounded to opposite numbers.
_LARGEST = 127
# For zeros: 0 / 1e-20 is 0, where 0 / 0 would be NaN.
_TINY = 1e-20


class Products(Protocol):
    """Computes scalar products of blocks of queries with the keys of one head."""

    def set_keys(self, keys: torch.Tensor, asking: torch.Tensor) -> None:
        """Set the keys, float32 [n, dim]. `asking`: a sample of the queries, [heads, some, dim]."""

    def set_queries(self, queries: torch.Tensor, first: int, last: int) -> None:
        """Set the queries, float32 [heads, rows, dim], for keys [first, last)."""

    def write(self, head: int, out: torch.Tensor) -> None:
        """Write the products of a head to `out`, float32 [rows, last - first]."""


class ExactProducts:
    """Products in float32."""

    def set_keys(self, keys: torch.Tensor, asking: torch.Tensor) -> None:
        """See `Products`."""
        self._keys = keys

    def set_queries(self, queries: torch.Tensor, first: int, last: int) -> None:
        """See `Products`."""
        self._queries, self._seen = queries, self._keys[first:last].T

    def write(self, head: int, out: torch.Tensor) -> None:
        """See `Products`."""
        torch.mm(self._queries[head], self._seen, out=out)


class Int8Products:
    """Products in int8.

    If `centred`, a term that depends only on the query is left out. That is only right before a
    softmax; a soft-cap in between needs the whole product.
    """

    def __init__(self, *, centred: bool) -> None:
        check_int8()
        self._centred = centred
        self._buffer = torch.empty(0, dtype=torch.int32)

    def set_keys(self, keys: torch.Tensor, asking: torch.Tensor) -> None:
        """See `Products`."""
        self._keys = keys
        # Step 1 holds for any two vectors k' and q', so k' may be the mean of all keys even where a
        # window hides some, and q' that of one block of queries. Means leave least to round.
        factors = keys - keys.mean(dim=0) if self._centred else keys
        spread = asking - asking.mean(dim=1, keepdim=True) if self._centred else asking
        # The balance may come from a sample of the queries: it changes what rounding loses, not the
        # product, where b_d cancels.
        sizes = factors.square().mean(dim=0), spread.square().mean(dim=(0, 1))
        larger = [size.sqrt_().clamp_min_(_TINY) for size in sizes]
        self._balance = larger[0].div_(larger[1]).sqrt_()
        self._factors, self._key_scales = _rounded(factors / self._balance)

    def set_queries(self, queries: torch.Tensor, first: int, last: int) -> None:
        """See `Products`."""
        self._common = None
        if self._centred:
            mean = queries.mean(dim=1)
            queries = queries - mean[:, None]
            # [heads, keys]: q'.k for every key, in float32.
            self._common = (self._keys[first:last] @ mean.T).T.contiguous()
        self._queries, self._query_scales = _rounded(queries * self._balance)
        self._seen, self._seen_scales = self._factors[first:last].T, self._key_scales[first:last, 0]

    def write(self, head: int, out: torch.Tensor) -> None:
        """See `Products`."""
        if self._buffer.numel() < out.numel():
            self._buffer = self._buffer.new_empty(out.numel())
        products = self._buffer[: out.numel()].view(out.shape)
        # No overflow: 256 dimensions of 127 * 127 are 4 million, and int32 reaches 2,147 million.
        torch._int_mm(self._queries[head], self._seen, out=products)
        # Scales of keys are [keys] and multiply columns; those of queries are [rows, 1].
        out.copy_(products).mul_(self._seen_scales)
        if self._common is None:
            out.mul_(self._query_scales[head])
        else:
            torch.addcmul(self._common[head], out, self._query_scales[head], out=out)


@cache
def check_int8() -> None:
    """Raise `KPruneError` on a processor whose int8 products are not exact.

    Without an instruction for them (x86 before VNNI), a processor adds neighbouring products in 16
    bits, which overflow.
    """
    rows = torch.full((32, 64), _LARGEST, dtype=torch.int8)
    for other in (rows, -rows):
        wanted = int(rows[0, 0]) * int(other[0, 0]) * rows.shape[1]
        if not (torch._int_mm(rows, other.T) == wanted).all():
            raise KPruneError(
                "this processor's int8 products overflow; rank with precision float32"
            )


def _rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Int8 numbers of the same shape and float32 scales [..., 1]; their product is about `x`."""
    scales = x.abs().amax(dim=-1, keepdim=True).div_(_LARGEST).clamp_min_(_TINY)
    return (x / scales).round_().to(torch.int8), scales
