"""A text as the ranker's tokenizer cuts it: what scorers read."""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from vllm_kprune.errors import KPruneError

__all__ = ["Tokens", "load_tokenizer"]


@dataclass(frozen=True)
class Tokens:
    """A text and the ranker's tokens of it; `offsets` are (begin, end) in characters of `text`."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model's folder, which neither cuts nor fills texts; or `KPruneError`."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise KPruneError(f"{folder} has no tokenizer.json; name a model's folder as the ranker")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises plain Exception
        raise KPruneError(f"{path} is not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
