"""Texts with weights, and batches of them for encoding."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeAlias

__all__ = ["WeightedText", "weighted_batches"]

# A text, and how often it counts.
WeightedText: TypeAlias = tuple[str, float]

_BATCH_TEXTS = 8192
_BATCH_CHARACTERS = 1 << 20


def weighted_batches(
    texts: Iterable[WeightedText], most: int | None = None
) -> Iterator[list[WeightedText]]:
    """Group the first `most` texts, or all of them, into batches of bounded size."""
    batch: list[WeightedText] = []
    characters = 0
    for text, weight in itertools.islice(texts, most):
        batch.append((text, weight))
        characters += len(text)
        # Looked at after a text was added, so a single long text makes a batch of its own size.
        if len(batch) >= _BATCH_TEXTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
