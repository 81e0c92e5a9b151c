"""A byte-pair-encoding `tokenizer.json` as a value: vocabulary, merges, added tokens, token bytes.

Encoding itself is left to the `tokenizers` library. This module has what pruning needs besides: the
bytes that a token stands for, and its *derivation*, the smaller tokens that BPE (Sennrich et al.
2016) passes through to build it. Two kinds of vocabulary are understood:
byte-level ones (GPT-2's alphabet; Qwen, Llama-3, Aya) and byte-fallback ones (Gemma). Unigram and
WordPiece models have no merges and are refused.
"""

import functools
import itertools
from collections.abc import Iterator, KeysView, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from vllm_kprune.errors import KPruneError, shown
from vllm_kprune.storage.bounded import Limits, read_object
from vllm_kprune.tokenizer.byte_tokens import BYTE_TOKENS, byte_alphabet, byte_name
from vllm_kprune.tokenizer.checks import check_added, check_model

__all__ = [
    "NOT_BPE",
    "TOKENIZER_FILE",
    "AddedToken",
    "BpeTokenizer",
    "parse_tokenizer",
    "read_tokenizer",
]

# That of Gemma-3, the largest that is known, has 33 MB and 1.9 million values.
TOKENIZER_FILE = Limits(bytes=128 << 20, values=5_000_000)

# Why not, by the name of the model in tokenizer.json. docs/models.md has the long form.
NOT_BPE: Mapping[str, str] = {
    "Unigram": (
        "text that the kept pieces cannot spell becomes <unk> and is lost, and the score of <unk> "
        "depends on the pieces that are dropped"
    ),
    "WordPiece": (
        "a word that the kept pieces cannot spell becomes [UNK] and is lost, and one that was "
        "[UNK] can become other tokens"
    ),
}

TokenKind = Literal["byte_level", "byte_fallback"]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is matched in the text before BPE runs. It need not be in the vocabulary."""

    id: int
    content: str
    special: bool


@dataclass(frozen=True)
class BpeTokenizer:
    """A parsed `tokenizer.json`.

    `data` is the parsed JSON, which is never changed. `merges` are in order of rank, which need not
    be the order of their results' ids.
    """

    data: Mapping[str, Any]
    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: tuple[AddedToken, ...]
    kind: TokenKind

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """id -> token, added tokens included. Ids may have gaps."""
        by_id = {i: token for token, i in self.vocab.items()}
        # An added token may have an id of the vocabulary. It comes last, so its content wins.
        return by_id | {token.id: token.content for token in self.added}

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """Ids of all added tokens, special or not."""
        return frozenset(token.id for token in self.added)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Ids of the tokens that spell any text byte by byte, so that no text is lost."""
        if self.kind == "byte_level":
            names = [name for name in byte_alphabet() if name in self.vocab]
        else:
            names = [byte_name(value, self.vocab) for value in range(256)]
        return frozenset(self.vocab[name] for name in names)

    @cached_property
    def _ranks(self) -> Mapping[tuple[str, str], int]:
        # As in the library, the last of two equal merges counts.
        return {pair: rank for rank, pair in enumerate(self.merges)}

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes that a token decodes to; they may be part of a character.

        Gemma: "▁the" -> b" the", "<0xEC>" -> b"\\xec". Qwen: "Ġthe" -> b" the".
        """
        token = self.tokens[token_id]
        if token_id in self.added_ids and token_id not in self.byte_ids:
            return token.encode()
        if self.kind == "byte_fallback":
            if token in BYTE_TOKENS:
                return bytes([BYTE_TOKENS[token]])
            return token.replace("▁", " ").encode()
        alphabet = byte_alphabet()
        return bytes(alphabet[char] for char in token if char in alphabet)

    def derivation(self, token: str) -> Iterator[str]:
        """Every token that BPE passes through on the way to `token`, its characters included.

        For "the" with merges (t h), (th e): "t", "h", "e", "th", "the".

        If BPE builds a token inside a longer text, it builds it in just this way: no merge crossed
        the token's borders, or the token would not be there. So these ancestors are all that a
        pruned tokenizer needs to build it.
        """
        yield from token
        yield from (left + right for left, right in self._replay(token))

    def _replay(self, token: str) -> Iterator[tuple[str, str]]:
        """The merges that BPE applies to the characters of `token`, in this order."""
        rank, never = self._ranks.get, len(self.merges)
        parts = list(token)
        scores = [rank(pair, never) for pair in itertools.pairwise(parts)]
        # The leftmost of equal ranks is next, as in BPE: of aaa, the first two merge.
        while scores and (best := min(scores)) < never:
            at = scores.index(best)
            yield parts[at], parts[at + 1]
            # Merge, then look up only the two pairs that changed: long tokens would take a second.
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            # Parts a b c d have the scores ab bc cd. Once b and c are merged, bc goes, the score in
            # its place is of (bc, d), and the one before it of (a, bc).
            del scores[at]
            if at < len(scores):
                scores[at] = rank((parts[at], parts[at + 1]), never)
            if at:
                scores[at - 1] = rank((parts[at - 1], parts[at]), never)

    def derivation_ids(self, token_id: int) -> KeysView[int]:
        """Ids of a token's derivation, parts before what is built from them.

        Parts that are not in the vocabulary are left out.
        """
        token = self.tokens[token_id]
        parts = self.derivation(token) if token in self.vocab else ()
        return dict.fromkeys(self.vocab[part] for part in parts if part in self.vocab).keys()

    def last_merge(self, token_id: int) -> tuple[int, int] | None:
        """The two parts of a token's last merge; None for what merges do not build.

        Its ancestors are these two and theirs. If only one merge makes a token, it is that one;
        among several it depends on the ranks, so they are replayed, once.
        """
        token, known = self.tokens[token_id], self._last_merges
        if token in known and known[token] is None:
            left, right = functools.reduce(lambda _, pair: pair, self._replay(token), ("", ""))
            built = left + right == token and left in self.vocab and right in self.vocab
            known[token] = (self.vocab[left], self.vocab[right]) if built else ()
        return known.get(token) or None

    def join(self, joined: dict[int, None], token_id: int) -> None:
        """Add a token to the ordered set `joined`, after those of its ancestors that are missing.

        `joined` must have the ancestors of all its tokens; it has them afterwards too.
        """
        # A stack, because a token of n characters can have n steps, and recursion has a limit.
        waiting = [] if token_id in joined else [token_id]
        while waiting:
            at = waiting[-1]
            parts = self.last_merge(at)
            missing = next((part for part in parts or () if part not in joined), None)
            if missing is not None:
                waiting.append(missing)
                continue
            if parts is None:
                joined |= dict.fromkeys(self.derivation_ids(at))
            joined[waiting.pop()] = None

    @cached_property
    def _last_merges(self) -> dict[str, "tuple[int, int] | tuple[()] | None"]:
        """Token -> ids of its two parts; empty for what merges do not build, None if not yet known.

        Written by `last_merge`.
        """
        parts: dict[str, tuple[int, int] | tuple[()] | None] = {}
        for left, right in self.merges:
            made, known = left + right, left in self.vocab and right in self.vocab
            # An empty part would make a token its own ancestor, and `join` would never end.
            only = known and left and right and made not in parts
            parts[made] = (self.vocab[left], self.vocab[right]) if only else None
        return parts


def read_tokenizer(folder: Path) -> BpeTokenizer:
    """Read `folder/tokenizer.json`. Raises `KPruneError` if it is missing or not BPE."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise KPruneError(
            f"{folder} has no tokenizer.json; kprune needs a fast tokenizer, so save one with "
            "transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    return parse_tokenizer(read_object(path, TOKENIZER_FILE), source=str(path))


def parse_tokenizer(data: Any, source: str = "tokenizer.json") -> BpeTokenizer:
    """Turn parsed JSON into a value. `source` is named in errors."""
    model = data.get("model") if isinstance(data, dict) else None
    kind_of_model = model.get("type", "BPE") if isinstance(model, dict) else None
    if kind_of_model != "BPE" or not isinstance(model, dict) or "merges" not in model:
        raise KPruneError(
            f"{source}: the model is {_named(kind_of_model)}, but kprune prunes only BPE"
            + _reason_of(kind_of_model)
        )
    try:
        check_model(model)
        vocab: dict[str, int] = model["vocab"]
        merges = [_pair(merge) for merge in model["merges"]]
        added = tuple(_added(entry) for entry in data.get("added_tokens") or ())
        check_added(added, vocab)
        return BpeTokenizer(data, vocab, merges, added, _kind(data, model, source))
    except KPruneError:
        raise
    except KeyError as error:
        raise KPruneError(f"{source}: malformed: there is no {error}") from None
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise KPruneError(f"{source}: malformed: {_reason(error)}") from None


def _reason_of(kind: object) -> str:
    reason = NOT_BPE.get(kind) if isinstance(kind, str) else None
    return f": {reason}; see Unigram and WordPiece in docs/models.md" if reason else ""


def _named(kind: object) -> str:
    return kind[:40] if isinstance(kind, str) and kind else "missing" if not kind else shown(kind)


def _reason(error: Exception) -> str:
    return str(error)[:200]


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    # Older files have "a b", newer ones ["a", "b"], which allows spaces inside a token.
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or list(map(type, parts)) != [str, str]:
        raise ValueError(f"the merge {shown(merge)} does not have two parts")
    return parts[0], parts[1]


def _added(entry: Mapping[str, Any]) -> AddedToken:
    if not isinstance(entry["content"], str):
        raise ValueError(f"the content of an added token is {shown(entry['content'])}")
    return AddedToken(entry["id"], entry["content"], bool(entry.get("special")))


def _kind(data: Mapping[str, Any], model: Mapping[str, Any], source: str) -> TokenKind:
    steps = set(_step_types(data.get("decoder")))
    if "ByteLevel" in steps:
        return "byte_level"
    # Both are needed: the model writes byte tokens, the decoder reads them.
    if model.get("byte_fallback") and "ByteFallback" in steps:
        names = [byte_name(value, model["vocab"]) for value in range(256)]
        missing = [name for name in names if name not in model["vocab"]]
        if not missing:
            return "byte_fallback"
        raise KPruneError(f"{source}: byte fallback lacks the byte token {missing[0]}")
    found = shown(sorted(steps)) if steps else "missing"
    raise KPruneError(
        f"{source}: the decoder is {found}; expected a byte-level or byte-fallback vocabulary, "
        "because only those can spell every text after pruning"
    )


def _step_types(decoder: Any) -> Iterator[str]:
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for step in decoder.get("decoders") or ():
            yield from _step_types(step)
