"""From the logits of the kept rows to logits of the whole vocabulary, the others being -inf."""

from typing import Any

__all__ = ["expand", "inverse_order"]


def inverse_order(ids: Any, width: int) -> Any:
    """For each of `width` token ids the place of its row in `ids` [rows]; `rows` if it has none.

    `ids` is a 1-D tensor of token ids. Returns an int64 tensor [width] on its device.

    >>> import torch
    >>> inverse_order(torch.tensor([3, 1]), 5).tolist()
    [2, 1, 2, 0, 2]
    """
    import torch

    places = torch.full((width,), len(ids), dtype=torch.int64, device=ids.device)
    places[ids.long()] = torch.arange(len(ids), device=ids.device)
    return places


def expand(logits: Any, inverse: Any) -> Any:
    """Logits [n, width] of all token ids, from logits [n, rows + 1] whose last column is -inf.

    `inverse` is what `inverse_order` gave for these rows. One pass: each id reads the column of its
    row, or the last one.
    """
    if logits.device.type != "cpu":
        return logits.index_select(1, inverse)
    import torch

    whole = logits.new_empty((len(logits), len(inverse)))
    # Five to ten times faster on a CPU than one call for all rows: only the gather from a vector is
    # vectorised there.
    for row, out in zip(logits, whole, strict=True):
        torch.index_select(row, 0, inverse, out=out)
    return whole
