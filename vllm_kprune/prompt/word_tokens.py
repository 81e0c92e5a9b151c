"""A tokenizer that needs no model: words are tokens.

It serves scorers that look at words (`rarity`, `question`) when nobody names a ranker. Its counts
are words, not the tokens of a target model, and it knows no control tokens.
"""

from functools import cache

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

__all__ = ["word_tokenizer"]

# Written without spaces: each character is a token.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
# A word takes one blank before it along, as in most BPE vocabularies; dropping it drops both.
_TOKEN = "|".join(
    [
        rf" ?{_UNSPACED}\p{{M}}*",
        rf" ?(?:(?!{_UNSPACED})[\p{{L}}\p{{N}}_]\p{{M}}*|(?<=\p{{L}})['’](?=\p{{L}}))+",
        r" ?[^\s\p{L}\p{N}_]",
        r"\s",
    ]
)
# All tokens have this id. Scorers take a high id for a rare token, so that a script without a word
# list is not the first to go.
_ID = 1_000_000


@cache
def word_tokenizer() -> Tokenizer:
    """Words with the blank before them, punctuation marks, and other blanks one by one."""
    # One word that is also the unknown word: every token has its id.
    tokenizer = Tokenizer(WordLevel({"word": _ID}, unk_token="word"))
    tokenizer.pre_tokenizer = Split(Regex(_TOKEN), "isolated")
    return tokenizer
