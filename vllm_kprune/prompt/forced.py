"""Find what stays in a text however unimportant it is: control tokens, and what options force."""

import numpy as np
import numpy.typing as npt

from vllm_kprune.prompt.budget import PruneOptions
from vllm_kprune.prompt.pieces import TextPieces
from vllm_kprune.prompt.tokens import ControlTokens, Tokens

__all__ = ["forced_pieces"]


def forced_pieces(
    tokens: Tokens, pieces: TextPieces, options: PruneOptions, control: ControlTokens
) -> npt.NDArray[np.bool_]:
    """[pieces] True for those that stay in any case: a piece stays if any part of it must."""
    forced = np.zeros(len(pieces.starts), dtype=bool)
    forced[pieces.of_token[: options.force_first]] = True
    if options.force_last:  # a slice from -0 would be everything
        forced[pieces.of_token[-options.force_last :]] = True
    characters = _forced_characters(tokens.text, options, control)
    if characters.any():
        # until[n]: forced characters before n. A piece with any has more at its end than its start.
        until = np.concatenate([[0], np.cumsum(characters)])
        forced |= until[pieces.ends] > until[pieces.starts]
    return forced


def _forced_characters(
    text: str, options: PruneOptions, control: ControlTokens
) -> npt.NDArray[np.int64]:
    """[characters + 1] 1 for those that stay."""
    characters = np.zeros(len(text) + 1, dtype=np.int64)
    for wanted in options.force_tokens:
        # Occurrences that overlap count once: of "aa" in "aaa", the first.
        begin = text.find(wanted)
        while begin >= 0:
            characters[begin : begin + len(wanted)] = 1
            begin = text.find(wanted, begin + len(wanted))
    for begin, end in control.find(text):
        characters[begin:end] = 1
    if options.force_digits:
        # isdigit() is wider than the digits of numbers (Nd): ² and ① count too.
        characters[[n for n, c in enumerate(text) if c.isdigit()]] = 1
    return characters
