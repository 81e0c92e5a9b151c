"""Text cut into windows of tokens so that every token and every character counts exactly once.

A window begins as the tokenizer begins a text (`<bos>` for Gemma and Llama), or, if the tokenizer
adds nothing, with the token that the model's configuration names as the first one. So the first
token of a text is predicted too, and texts of different tokenizers are compared whole.

Windows of one document begin `stride` tokens apart. A token counts in the first window that has it;
the tokens before it in a later window are only its context. A character counts with the first token
that reaches its end in the text, or, if it has several tokens (bytes), with the first of these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from vllm_kprune.arrays import Integers
from vllm_kprune.errors import KPruneError

__all__ = ["Window", "begin_ids", "cut_windows"]


@dataclass(frozen=True)
class Window:
    """Token ids [tokens]; the last `scored` of them count, with so many characters of the text."""

    ids: Integers
    scored: int
    characters: int


def begin_ids(encoder: Tokenizer, config: Any) -> tuple[int, ...]:
    """The ids that a text begins with: from the tokenizer, or else from a model's `config`.

    Like lm-evaluation-harness, takes the end-of-text token if there is no other.
    """
    if ids := encoder.encode("").ids:
        return tuple(ids)
    text_config = config.get_text_config()
    for name in ("bos_token_id", "eos_token_id"):
        value = getattr(text_config, name, None)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int):
            return (value,)
    raise KPruneError(
        "nothing says which token a text begins with: the tokenizer adds none, and config.json has "
        "neither bos_token_id nor eos_token_id"
    )


def cut_windows(
    encoder: Tokenizer,
    documents: Sequence[str],
    begin: Sequence[int],
    length: int,
    stride: int | None = None,
) -> list[Window]:
    """The windows of all documents, each of at most `length` ids with `begin` included.

    Without a `stride`, windows do not overlap. Over the windows of a document, the scored tokens
    are the tokens of its encoding, and the characters are `len(document)`. A document without
    tokens has no window.

    Raises `KPruneError` for a length that leaves no room, or a stride that would skip tokens.
    """
    width = length - len(begin)
    if width < 1:
        raise KPruneError(f"a window of {length} tokens has no room for text; give at least 2")
    stride = width if stride is None else stride
    if not 1 <= stride <= width:
        raise KPruneError(
            f"a stride of {stride} with windows of {length} tokens: expected 1 to {width}, so that "
            "no token is left out"
        )
    return [
        window for text in documents for window in _windows(encoder, text, begin, width, stride)
    ]


def _windows(
    encoder: Tokenizer, text: str, begin: Sequence[int], width: int, stride: int
) -> list[Window]:
    encoding = encoder.encode(text, add_special_tokens=False)
    ids, count = encoding.ids, len(encoding.ids)
    # reached[i]: characters of the text that the first i tokens have. Offsets may go back (the
    # bytes of one character all have its place), and what a normalizer drops has none.
    ends = [end for _, end in encoding.offsets]
    reached = np.maximum.accumulate([0, *ends])
    reached[-1] = len(text)
    windows, done, start = [], 0, 0
    while done < count:
        end = min(start + width, count)
        values = np.array([*begin, *ids[start:end]], np.int64)
        windows.append(Window(values, end - done, int(reached[end] - reached[done])))
        done, start = end, start + stride
    return windows
