"""The encoder of the `tokenizers` library, set up to encode whole texts.

A `tokenizer.json` can ask for truncation or padding. Both would falsify counts of tokens and
comparisons of encodings, so kprune switches them off wherever it encodes.
"""

from pathlib import Path

from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.bounded import read_bytes
from vllm_kprune.tokenizer.bpe import TOKENIZER_FILE

__all__ = ["load_encoder", "raise_failure", "whole_texts"]


def load_encoder(folder: Path) -> Tokenizer:
    """The encoder of a model folder. Raises `KPruneError` if its tokenizer.json cannot be read."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise KPruneError(f"{folder} has no tokenizer.json; name the folder of a model")
    data = read_bytes(path, TOKENIZER_FILE.bytes)
    try:
        encoder = whole_texts(Tokenizer.from_buffer(data))
        encoder.encode("")  # a template of special tokens that lacks one fails here, and not before
        return encoder
    except ValueError as error:
        raise KPruneError(f"{path} is not a tokenizer: {_reason(error)}") from None
    except BaseException as error:
        raise_failure(error, f"{path} is not a tokenizer")
        raise


def raise_failure(error: BaseException, what: str) -> None:
    """Raise a `KPruneError` that begins with `what` if the tokenizers library failed.

    It raises plain `Exception`, or it panics: that is a `BaseException` of a type that cannot be
    imported. A regular expression that backtracks too often makes it panic, for instance.
    """
    if type(error) is Exception or type(error).__name__ == "PanicException":
        raise KPruneError(f"{what}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def whole_texts(encoder: Tokenizer) -> Tokenizer:
    """The same encoder, changed so that it neither truncates nor pads."""
    encoder.no_truncation()
    encoder.no_padding()
    return encoder
