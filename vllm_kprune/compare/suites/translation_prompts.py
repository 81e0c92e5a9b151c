"""The directions of `translation`, its prompts, and the translation in an answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_kprune.compare.endpoint.messages import Answer, Request
from vllm_kprune.compare.suites.parallel_text import own_shots

__all__ = ["Direction", "directions", "prompt_request", "translation_of"]

_NAMES = {
    "en": "English",
    "ko": "Korean",
    "zh": "Chinese",
    "ja": "Japanese",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "ru": "Russian",
    "vi": "Vietnamese",
    "th": "Thai",
}


@dataclass(frozen=True)
class Direction:
    """From one language code to another."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"

    @property
    def key(self) -> str:
        """The direction as a part of a metric's name."""
        return f"{self.source}_{self.target}"


def directions(languages: Sequence[str]) -> tuple[Direction, ...]:
    """Both directions between the first language and each of the others.

    >>> [str(d) for d in directions(("ko", "en", "zh"))]
    ['en-ko', 'ko-en', 'zh-ko', 'ko-zh']
    """
    pivot, *others = languages
    pairs = ((other, pivot) for other in others)
    return tuple(d for a, b in pairs for d in (Direction(a, b), Direction(b, a)))


def prompt_request(
    direction: Direction, text: str, *, chat: bool, max_tokens: int, seed: int
) -> Request:
    """The greedy request for one translation."""
    # A language without a name here is asked for by its code.
    source, target = (_NAMES.get(code, code) for code in (direction.source, direction.target))
    if chat:
        words = (
            f"Translate the following {source} text into {target}. "
            f"Reply with the translation only.\n\n{text}"
        )
        messages = ({"role": "user", "content": words},)
        return Request("chat", messages=messages, max_tokens=max_tokens, seed=seed)
    # None where kprune's own examples lack one of the languages: the model then sees the form only.
    shots = [s.texts for s in own_shots() if {direction.source, direction.target} <= s.texts.keys()]
    shown = [f"{source}: {s[direction.source]}\n{target}: {s[direction.target]}" for s in shots]
    prompt = "\n\n".join([*shown, f"{source}: {text}\n{target}:"])
    # Without it, the model may go on with examples of its own.
    stop = {"stop": ["\n"]}
    return Request("completion", prompt=prompt, max_tokens=max_tokens, seed=seed, extra=stop)


def translation_of(answer: Answer) -> str:
    """The answer on one line, as the metrics expect it.

    >>> translation_of(Answer(text=" 안녕하세요.\\n"))
    '안녕하세요.'
    """
    return " ".join(answer.text.split())
