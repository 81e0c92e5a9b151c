"""The encoder of the `tokenizers` library, set up to encode whole texts.

A `tokenizer.json` can ask for truncation or padding. Both would falsify counts of tokens and
comparisons of encodings, so kprune switches them off wherever it encodes.
"""

import re
import time
from pathlib import Path

from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError
from vllm_kprune.storage.bounded import read_bytes
from vllm_kprune.tokenizer.bpe import TOKENIZER_FILE

__all__ = ["load_encoder", "raise_failure", "whole_texts"]

_PATTERN = re.compile(rb'"Regex"\s*:\s*"((?:[^"\\]|\\.)*)"')
_OTHERS = "aA1 \n.▁Ġ한"  # of classes of characters
_MOST_PROBES = 200
_RUN = 64
_PROBE_SECONDS = 5.0


def load_encoder(folder: Path) -> Tokenizer:
    """The encoder of a model folder. Raises `KPruneError` if its tokenizer.json cannot be read."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise KPruneError(f"{folder} has no tokenizer.json; name the folder of a model")
    data = read_bytes(path, TOKENIZER_FILE.bytes)
    try:
        encoder = whole_texts(Tokenizer.from_buffer(data))
        _probe(encoder, data)
        return encoder
    except ValueError as error:
        raise KPruneError(f"{path} is not a tokenizer: {_reason(error)}") from None
    except BaseException as error:
        raise_failure(error, f"{path} is not a tokenizer")
        raise


def _probe(encoder: Tokenizer, data: bytes) -> None:
    """Encode what a damaged or hostile file fails on, so that it fails now and not hours later.

    That is nothing, with special tokens around it, and runs of each character that a pattern names:
    on those, patterns such as `(x+x+)+y` take time that grows with the power of the length.
    """
    encoder.encode("")
    patterns = b"".join(_PATTERN.findall(data)).decode(errors="replace")
    began = time.monotonic()
    for character in list(dict.fromkeys(f"{patterns}{_OTHERS}"))[:_MOST_PROBES]:
        encoder.encode(character * _RUN + "\0")
        if time.monotonic() - began > _PROBE_SECONDS:
            raise ValueError(f"its patterns take too long on {_RUN} characters {character!r}")


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
