"""Which tokens can encoding produce at all? (law 3: no dead rows)

A token is alive when some text is encoded to it. For a token of whole characters the text to try is
its own. A token that begins or ends inside a character needs neighbours that complete it; the
smallest completions are tried.
"""

import itertools
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer

from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.tokenizer.utf8 import character_length, is_continuation, unfinished

__all__ = ["unreachable_ids", "witness_texts"]

_BATCH = 20_000
_CONTINUATIONS = range(0x80, 0xC0)
_SOME_CONTINUATIONS = (0x80, 0x8F, 0x9F, 0xAF, 0xBF)
_LEADS = (0xC3, 0xEA, 0xE3, 0xE4, 0xE2, 0xE1, 0xF0, 0xE5, 0xE6, 0xE7, 0xEB, 0xEC, 0xED, 0xD0, 0xCE)
_MOST_WITNESSES = 4096


def unreachable_ids(parsed: BpeTokenizer, tokenizer: Tokenizer, ids: Iterable[int]) -> list[int]:
    """The ids that no witness text is encoded to, in the order given.

    Byte tokens are not looked at: they are kept so that every text can be spelled, and valid UTF-8
    never contains some of them.
    """
    ids = [i for i in ids if i not in parsed.byte_ids]
    doubtful: list[int] = []
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        texts = [parsed.token_bytes(i).decode(errors="replace") for i in batch]
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        doubtful += [i for i, e in zip(batch, encoded, strict=True) if i not in e.ids]
    return [i for i in doubtful if not _has_witness(tokenizer, i, parsed.token_bytes(i))]


def _has_witness(tokenizer: Tokenizer, token_id: int, token: bytes) -> bool:
    texts = itertools.islice(witness_texts(token), _MOST_WITNESSES)
    return any(token_id in tokenizer.encode(text, add_special_tokens=False).ids for text in texts)


def witness_texts(token: bytes) -> Iterator[str]:
    """Texts that contain the token's bytes, completed to whole characters, shortest first."""
    for head in _heads(token):
        for missing in range(_missing_bytes(head + token) + 1):
            # All tails of the first head would use up the number of texts that is tried.
            choice = _CONTINUATIONS if missing == 1 and not head else _SOME_CONTINUATIONS
            for tail in itertools.product(choice, repeat=missing):
                try:
                    yield (head + token + bytes(tail)).decode()
                except UnicodeDecodeError:
                    continue


def _missing_bytes(text: bytes) -> int:
    """How many bytes the last character of `text` lacks."""
    begun = unfinished(text)
    return character_length(begun[0]) - len(begun) if begun else 0


def _heads(token: bytes) -> Iterator[bytes]:
    """Beginnings that the token's leading continuation bytes may complete."""
    if not token or not is_continuation(token[0]):
        yield b""
        yield b" "
        yield b"a"
        return
    for lead in _LEADS:
        yield bytes([lead])
    for lead, middle in itertools.product(_LEADS, _CONTINUATIONS):
        yield bytes([lead, middle])
    for pair in itertools.product((0x9F, 0x90, 0xA0), _CONTINUATIONS):
        yield bytes([0xF0, *pair])
