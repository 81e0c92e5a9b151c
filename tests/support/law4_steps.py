"""Greedy answers of an original and a pruned model, compared step by step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from support.live_client import Step, float32_error
from vllm_kprune.checkpoint.manifest import load_manifest


@dataclass(frozen=True)
class Vocabulary:
    """The pruned tokenizer, and the id map: new id -> original id, of the tokens with a row."""

    tokenizer: Tokenizer
    kept: tuple[int, ...]

    def ids(self, text: str) -> list[int]:
        """The text in pruned ids."""
        return list(self.tokenizer.encode(text).ids)

    def original(self, ids: Sequence[int]) -> list[int]:
        """The same tokens in original ids."""
        return [self.kept[i] for i in ids]

    def pruned(self, ids: Sequence[int]) -> list[int]:
        """The same tokens in pruned ids."""
        new_id = {old: new for new, old in enumerate(self.kept)}
        return [new_id[i] for i in ids]

    def original_steps(self, steps: Sequence[Step]) -> list[Step]:
        """The same steps in original ids."""
        return [
            Step(self.kept[step.token], {self.kept[i]: value for i, value in step.best.items()})
            for step in steps
        ]


def load_vocabulary(overlay: Path) -> Vocabulary:
    """What an overlay keeps."""
    tokenizer = Tokenizer.from_file(str(overlay / "tokenizer.json"))
    return Vocabulary(tokenizer, load_manifest(overlay).kept_rows)


@dataclass(frozen=True)
class Difference:
    """A place where the answers differ, and the step of each model there."""

    prompt: str
    position: int
    original: Step
    pruned: Step

    def is_tie(self, resolution: Callable[[float], float]) -> bool:
        """Are both tokens on top, no further apart than numbers of that size can tell?"""
        gap = self.original.gap_between(self.original.token, self.pruned.token)
        return gap <= resolution(self.original.highest)


Answers = dict[str, list[Step]]  # by prompt, in original ids
Continue = Callable[[dict[str, int]], Answers]


def first_difference(
    prompt: str, start: int, original: Sequence[Step], pruned: Sequence[Step]
) -> Difference | None:
    """The first place at which the pruned model, asked from `start` on, chose another token."""
    pairs = enumerate(zip(original[start:], pruned, strict=True), start=start)
    return next(
        (
            Difference(prompt, at, one, other)
            for at, (one, other) in pairs
            if one.token != other.token
        ),
        None,
    )


def differences(expected: Answers, go_on: Continue) -> Iterator[Difference]:
    """Every place where the pruned model differs from the original, as if it had not before.

    `go_on` answers each prompt after the first so many tokens of the original's answer: after a
    difference it is asked again from the original's text, so all positions are compared.
    """
    places = dict.fromkeys(expected, 0)
    while places:
        answers = go_on(places)
        found = [
            first_difference(prompt, places[prompt], expected[prompt], steps)
            for prompt, steps in answers.items()
        ]
        yield from filter(None, found)
        after = {one.prompt: one.position + 1 for one in found if one}
        places = {prompt: at for prompt, at in after.items() if at < len(expected[prompt])}


def largest_error(original: Sequence[Step], pruned: Sequence[Step]) -> float:
    """The largest difference of two logits before the answers differ, as a share of rounding."""
    errors = [0.0]
    for one, other in zip(original, pruned, strict=True):
        shared = one.best.keys() & other.best.keys()
        errors += [abs(one.best[i] - other.best[i]) / float32_error(one.highest) for i in shared]
        if one.token != other.token:
            break
    return max(errors)
