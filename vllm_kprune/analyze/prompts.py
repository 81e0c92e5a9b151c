"""Texts as prompts: what is sent through a model's layers when features or neurons are measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from vllm_kprune.analyze.windows import begin_ids, cut_windows
from vllm_kprune.arrays import Integers
from vllm_kprune.errors import KPruneError

__all__ = ["LanguagePrompt", "languages_of", "make_prompts", "window_prompts"]


@dataclass(frozen=True)
class LanguagePrompt:
    """Token ids [tokens] of a text in one language; the first `begin` of them are not of the text.

    These are left out of all statistics: attention rests on the first token of a text, and its
    hidden state is many times larger than all others.
    """

    language: str
    ids: Integers
    begin: int


def make_prompts(
    encoder: Tokenizer, config: Any, texts: Mapping[str, str | Sequence[str]], length: int
) -> list[LanguagePrompt]:
    """A prompt of each text, cut after `length` ids. Texts without tokens are left out.

    `config` is the model's configuration (`begin_ids`). Raises `KPruneError` for a language without
    any text, and for a length that leaves no room for text.
    """
    begin = begin_ids(encoder, config)
    if length <= len(begin):
        raise KPruneError(f"a prompt of {length} tokens has no room for text; give at least 2")
    prompts = []
    for language, given in texts.items():
        ones = [given] if isinstance(given, str) else given
        encoded = [encoder.encode(text, add_special_tokens=False).ids for text in ones]
        if not any(encoded):
            raise KPruneError(f"the text of {language} is empty; give some text in this language")
        prompts += [
            LanguagePrompt(language, np.array([*begin, *ids][:length], np.int64), len(begin))
            for ids in encoded
            if ids
        ]
    return prompts


def window_prompts(
    encoder: Tokenizer, config: Any, texts: Mapping[str, Sequence[str]], length: int
) -> list[LanguagePrompt]:
    """Prompts that are the windows of whole documents, without overlap (`cut_windows`)."""
    begin = begin_ids(encoder, config)
    prompts = []
    for language, documents in texts.items():
        windows = cut_windows(encoder, documents, begin, length)
        if not windows:
            raise KPruneError(f"the text of {language} is empty; give some text in this language")
        prompts += [LanguagePrompt(language, window.ids, len(begin)) for window in windows]
    return prompts


def languages_of(prompts: Sequence[LanguagePrompt]) -> tuple[str, ...]:
    """The languages of the prompts, in order of appearance."""
    return tuple(dict.fromkeys(prompt.language for prompt in prompts))
