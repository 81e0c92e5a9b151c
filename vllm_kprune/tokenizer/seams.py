"""Find the blanks before which a text can be cut without changing its tokens.

Most tokenizers never join what is before a blank to what is after it, so the tokens of a text are
those of its parts, one after the other. Then a part that was encoded before needs no encoding
again. That is decided by the kind of the tokenizer, not by trials:

- Byte-level BPE cuts a text by a pattern first. In the patterns that are known here, nothing that
  ends in a letter, a digit or a mark goes on with a blank.
- BPE over whole texts, as Gemma's, can only join what is together in one of its tokens. So a blank
  is a seam, unless some token has the same character before a blank.

Tokenizers of other kinds have no seams, and their texts are encoded whole.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

__all__ = ["parts_pattern"]

# Patterns that cut before every blank after a word or mark: Qwen 2 and 3, Llama 3 and GPT-4,
# GPT-4o. GPT-2's is built into `ByteLevel`.
_SPLITS = frozenset(
    {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)
_SPLIT = {"type": "Split", "invert": False}
# A seam is after one of these: letters and digits of any script (\w), and usual marks.
_BEFORE = ".,;:!?)]}\"'%…。，、！？”’»-"
_BLANK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
# Nothing; what looks as if it cut, but comes after all blanks are gone; and a cut before each ▁.
_BEFORE_BPE: Sequence[dict[str, Any] | None] = (
    None,
    {**_SPLIT, "pattern": {"String": " "}, "behavior": "MergedWithPrevious"},
    {**_SPLIT, "pattern": {"String": "▁"}, "behavior": "MergedWithNext"},
)
# No seam is after a line end or a blank, so those do not matter.
_IN_TOKEN = re.compile(r"([^\n ▁])[ ▁]")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>[ ▁]")


def parts_pattern(tokenizer: Tokenizer) -> "re.Pattern[str] | None":
    """A pattern whose matches are the parts of a text; None if the tokenizer has no seams."""
    added = tokenizer.get_added_tokens_decoder().values()
    if not _is_bpe(tokenizer) or any(t.lstrip or t.rstrip or t.single_word for t in added):
        return None
    texts = [token.content for token in added]
    if _is_whole(tokenizer):
        texts += tokenizer.get_vocab(with_added_tokens=False)
    elif not _is_byte_level(tokenizer):
        return None
    everything = "\n".join(["", *texts])
    # A character that is not in the vocabulary becomes byte tokens.
    if _BYTE_TOKEN.search(everything):
        return None
    return _pattern(set(_IN_TOKEN.findall(everything)))


def _pattern(joined: set[str]) -> "re.Pattern[str]":
    """`joined`: characters that a token has before a blank, so there is no seam after them."""
    marks = re.escape("".join(sorted(set(_BEFORE) - joined)))
    not_after = f"(?<![{marks}\\w])"
    if words := "".join(sorted(one for one in joined if re.match(r"\w", one))):
        not_after = f"(?:{not_after}|(?<=[{words}]))"
    return re.compile(f" ?[^ ]*(?:{not_after} [^ ]*)*")


def _is_bpe(tokenizer: Tokenizer) -> bool:
    model = tokenizer.model
    return (
        type(model).__name__ == "BPE"
        and not model.dropout
        and not model.continuing_subword_prefix
        and not model.end_of_word_suffix
    )


def _is_whole(tokenizer: Tokenizer) -> bool:
    """True if blanks become ▁, and nothing else is done before BPE."""
    normalizer, first = _state(tokenizer.normalizer), _state(tokenizer.pre_tokenizer)
    # A whole text that is a token would be one token, whatever its merges.
    return normalizer == _BLANK and first in _BEFORE_BPE and not tokenizer.model.ignore_merges


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """True if a known pattern cuts the text, and no blank is put in or left out."""
    normalizer, first = _state(tokenizer.normalizer), _state(tokenizer.pre_tokenizer)
    last = _state(tokenizer.post_processor)
    if normalizer not in (None, {"type": "NFC"}) or first is None or _trims(last):
        return False
    steps = first.get("pretokenizers", [first])
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return False
    cuts = steps[-1].get("use_regex", True)
    for step in steps[:-1]:
        cuts = cuts or _is_known(step)
        if not (step.get("type") == "Digits" or _is_known(step)):
            return False
    return bool(cuts)


def _is_known(step: dict[str, Any]) -> bool:
    pattern = step.get("pattern", {}).get("Regex")
    isolated = step.get("behavior") == "Isolated" and not step.get("invert")
    return step.get("type") == "Split" and isolated and pattern in _SPLITS


def _trims(processor: dict[str, Any] | None) -> bool:
    """True if a post-processor moves the offsets of tokens, which depends on their place."""
    steps = [] if processor is None else processor.get("processors", [processor])
    return any(one.get("type") == "ByteLevel" and one.get("trim_offsets", True) for one in steps)


def _state(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as tokenizer.json has it; None if there is no such part."""
    return None if part is None else json.loads(part.__getstate__())
