"""The encoder of the `tokenizers` library, set up to encode whole texts.

A `tokenizer.json` can ask for truncation or padding. Both would falsify counts of tokens and
comparisons of encodings, so kprune switches them off wherever it encodes.
"""

from pathlib import Path

from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError

__all__ = ["load_encoder", "whole_texts"]


def load_encoder(folder: Path) -> Tokenizer:
    """The encoder of a model folder. Raises `KPruneError` if its tokenizer.json cannot be read."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise KPruneError(f"{folder} has no tokenizer.json; name the folder of a model")
    try:
        return whole_texts(Tokenizer.from_file(str(path)))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise KPruneError(f"{path} is not a tokenizer: {error}") from None


def whole_texts(encoder: Tokenizer) -> Tokenizer:
    """The same encoder, changed so that it neither truncates nor pads."""
    encoder.no_truncation()
    encoder.no_padding()
    return encoder
