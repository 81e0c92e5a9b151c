"""What a scorer reads: a text with its tokens and pieces."""

from dataclasses import dataclass

from vllm_kprune.prompt.pieces import TextPieces
from vllm_kprune.prompt.tokens import Tokens

__all__ = ["CutText"]


@dataclass(frozen=True, eq=False)
class CutText:
    """A text to score."""

    tokens: Tokens
    pieces: TextPieces

    @property
    def text(self) -> str:
        """The text."""
        return self.tokens.text
