"""Which tokens can encoding produce at all? (law 3: no dead rows)

A token is reachable if some text, a *witness*, is encoded to it. A token of whole characters is
tried as it is. A token that begins or ends inside a character needs bytes around it:

- The token ED 95 (two thirds of 한) is completed by each continuation byte. The first text is
  ED 95 80, 핀; it proves nothing if the vocabulary has that whole character as one token, so the
  next one is tried, until one is encoded with the token.
- The token 95 9C (the last two thirds of 한) needs a beginning: EA makes ꕜ, ED makes 한.
- The token 9C 20 ends a character of any length: C3 makes "Ü ", ED 95 makes "한 ".

A token without a witness counts as unreachable, though a text that was not tried might produce it.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer

from vllm_kprune.tokenizer.apart import ApartEncoder
from vllm_kprune.tokenizer.bpe import BpeTokenizer
from vllm_kprune.tokenizer.utf8 import character_length, is_continuation, unfinished

__all__ = ["unreachable_ids", "witness_texts"]

_BATCH = 20_000
_CONTINUATIONS = range(0x80, 0xC0)
# Two or three free bytes have 4,096 or 262,144 values. Five values for each of them suffice: they
# only have to avoid what the vocabulary has as a whole.
_SOME_CONTINUATIONS = (0x80, 0x8F, 0x9F, 0xAF, 0xBF)
# Lead bytes of the characters that vocabularies know best, frequent ones first.
_LEADS = (0xC3, 0xEA, 0xE3, 0xE4, 0xE2, 0xE1, 0xF0, 0xE5, 0xE6, 0xE7, 0xEB, 0xEC, 0xED, 0xD0, 0xCE)
_MOST_WITNESSES = 4096


def unreachable_ids(parsed: BpeTokenizer, tokenizer: Tokenizer, ids: Iterable[int]) -> list[int]:
    """The ids that no witness is encoded to, in the order given.

    Byte tokens are left out: they are kept so that every text can be spelled, though some of them
    occur in no valid UTF-8.
    """
    ids = [i for i in ids if i not in parsed.byte_ids]
    # First each token's own text, in large batches; witnesses only for the few that are left.
    doubtful: list[int] = []
    encoder = ApartEncoder.of(tokenizer)
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        # Half a character becomes U+FFFD, so its token is not found here and gets witnesses below.
        texts = [parsed.token_bytes(i).decode(errors="replace") for i in batch]
        found, lengths = encoder.encode(texts)
        wanted = np.array(batch, dtype=np.int64)
        # For each id, is it among those of its own text?
        owners = np.repeat(np.arange(len(batch)), lengths)
        hits = np.bincount(owners[found == wanted[owners]], minlength=len(batch))
        doubtful += wanted[hits == 0].tolist()
    return [i for i in doubtful if not _has_witness(tokenizer, i, parsed.token_bytes(i))]


def _has_witness(tokenizer: Tokenizer, token_id: int, token: bytes) -> bool:
    texts = itertools.islice(witness_texts(token), _MOST_WITNESSES)
    return any(token_id in tokenizer.encode(text, add_special_tokens=False).ids for text in texts)


def witness_texts(token: bytes) -> Iterator[str]:
    r"""Texts that contain the token's bytes, completed to whole characters, shortest first.

    >>> list(itertools.islice(witness_texts(b"\xed\x95"), 3))
    ['핀', '핁', '핂']
    >>> next(witness_texts(b"\x95\x9c"))
    'ꕜ'
    """
    for head in _heads(token):
        for missing in range(_missing_bytes(head + token) + 1):
            # With all tails, the first head alone would use up the number of texts that are tried.
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
    """Beginnings of a character that the token's first bytes may complete."""
    if not token or not is_continuation(token[0]):
        # What stands before a token decides which merges come first, so there are three tries.
        yield b""
        yield b" "
        yield b"a"
        return
    for lead in _LEADS:
        yield bytes([lead])
    for lead, middle in itertools.product(_LEADS, _CONTINUATIONS):
        yield bytes([lead, middle])
    # F0 9F begins emoji, F0 90 old scripts, F0 A0 rare Han characters.
    for pair in itertools.product((0x9F, 0x90, 0xA0), _CONTINUATIONS):
        yield bytes([0xF0, *pair])
