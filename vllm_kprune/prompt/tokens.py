"""A text as the ranker's tokenizer cuts it: what scorers read."""

from dataclasses import dataclass

__all__ = ["Tokens"]


@dataclass(frozen=True)
class Tokens:
    """A text and the ranker's tokens of it; `offsets` are (begin, end) in characters of `text`."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
