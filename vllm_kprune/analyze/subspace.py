"""The language-specific subspace of embeddings, found without parallel text: LSAR.

    basis = specific_basis(means)               # means: [languages, hidden]
    agnostic, specific = split(embeddings, basis)

Xie et al. 2022, *Discovering Low-rank Subspaces for Language-agnostic Multilingual
Representations* (algorithm 1), write the mean embeddings of the languages, as the
columns of M, as one mean and a low-rank part for the languages' own signal:

    min over mu, M_s, G of |M - mu 1^T - M_s G^T|_F   with M_s [hidden, rank], mu orthogonal to M_s

They solve it in two steps: (1) the best approximation M' = m 1^T + U S V^T with the mean m of the
columns and the first `rank` singular vectors of M - m 1^T; (2) as mu the point nearest to the
origin on the affine hull of M', and as M_s the singular vectors of M' - mu 1^T. That hull is
m + span(U), so mu = m - U U^T m, the columns of M' - mu 1^T lie in span(U), and

    M_s M_s^T = U U^T

so step 2 changes the basis but not the projection. An embedding e then is a sum of two parts:

    agnostic(e) = e - M_s M_s^T e               specific(e) = M_s M_s^T e

With L languages the rank is at most L - 1, where all differences of the means are specific.
"""

import numpy as np

from vllm_kprune.arrays import Floats
from vllm_kprune.errors import KPruneError

__all__ = ["checked_rank", "specific_basis", "split"]


def specific_basis(means: Floats, rank: int | None = None) -> Floats:
    """An orthonormal basis [hidden, rank] of the language-specific subspace.

    `means` are the mean embeddings [languages, hidden]. Without a `rank`, languages - 1. Directions
    in which the means do not differ at all are left out, so the basis may be smaller.

    Raises `KPruneError` for fewer than two languages, or a rank that they cannot have.
    """
    rank = checked_rank(len(means), rank)
    centred = np.asarray(means, np.float64) - means.mean(axis=0, dtype=np.float64)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    found = sizes[:rank] > max(centred.shape) * np.finfo(np.float64).eps * sizes[0]
    basis: Floats = directions[:rank][found].T
    return basis


def checked_rank(languages: int, rank: int | None) -> int:
    """The rank of the subspace for so many languages, as large as it can be if none is given."""
    most = languages - 1
    if most < 1:
        raise KPruneError("language-specific features need texts of at least two languages")
    rank = most if rank is None else rank
    if not 1 <= rank <= most:
        raise KPruneError(f"a rank of {rank} with {languages} languages: expected 1 to {most}")
    return rank


def split(embeddings: Floats, basis: Floats) -> tuple[Floats, Floats]:
    """The language-agnostic and the language-specific part of embeddings [..., hidden]."""
    specific = embeddings @ basis @ basis.T
    return embeddings - specific, specific
