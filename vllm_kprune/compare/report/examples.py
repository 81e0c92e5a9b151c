"""Which examples a report shows, and how much of each; the most informative come first."""

from collections.abc import Sequence
from dataclasses import replace

from vllm_kprune.compare.measurements import Example, Span

__all__ = ["choose_examples", "shorten"]

MOST_EXAMPLES = 120
MOST_CHARACTERS = 4_000
_MOST_SPANS = 100
_MOST_LABELS = 20
_NAME = 120


def choose_examples(examples: Sequence[Example], most: int = MOST_EXAMPLES) -> list[Example]:
    """At most `most` examples, cut to size.

    Those with spans come first, then those whose answers differ, then the rest; in each group,
    answers that differ come before identical ones. Otherwise the order is as given.
    """
    # `sorted` is stable, so each group keeps the order of the suite.
    ranked = sorted(examples, key=_rank)
    return [_cut(example) for example in ranked[:most]]


def _rank(example: Example) -> int:
    same = example.answers[0] == example.answers[1]
    return (0 if any(example.spans) else 2) + same


def _cut(example: Example) -> Example:
    first, second = example.answers
    labels = list(example.labels.items())[:_MOST_LABELS]
    return replace(
        example,
        item=shorten(example.item, _NAME),
        prompt=shorten(example.prompt),
        answers=(shorten(first), shorten(second)),
        labels={shorten(name, _NAME): shorten(value, _NAME) for name, value in labels},
        spans=(_visible(example.spans[0], first), _visible(example.spans[1], second)),
        reference=None if example.reference is None else shorten(example.reference),
    )


def _visible(spans: Sequence[Span], answer: str) -> tuple[Span, ...]:
    """Spans in order, limited to the part of the answer that is shown, and without overlaps."""
    shown: list[Span] = []
    end = 0
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        # `end` is where the last span ended: a span that begins before loses its beginning.
        start, stop = max(span.start, end), min(span.end, len(answer), MOST_CHARACTERS)
        if start < stop:
            shown.append(Span(start, stop, shorten(span.why, _NAME)))
            end = stop
    return tuple(shown[:_MOST_SPANS])


def shorten(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text, or its beginning and how many characters were left out.

    Lone surrogates, which a hostile server can send in JSON, cannot be written as UTF-8 and become
    replacement characters.
    """
    # One character for one, so that spans keep their places.
    text = text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
    return text if len(text) <= most else f"{text[:most]}… [{len(text) - most:,} more characters]"
