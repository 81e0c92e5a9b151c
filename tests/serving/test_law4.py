"""Law 4 on real engines: the pruned model is the original with everything else masked.

The same prompts (as token ids, through the id map), greedy. Live servers answer all of them in
float32, where every logit is compared and rounding leaves next to no ties. The default of the
checkpoint, bfloat16, is computed offline: there a batch has the same shapes in both engines, so
that the only matrix product that differs is the LM head's. Wherever two answers differ it has to be
a tie: two tokens on top whose logits that format cannot tell apart.
"""

from pathlib import Path
from typing import Any

import pytest
from support.forks import ask
from support.law4_prompts import FEW, KINDS, PROMPTS
from support.law4_steps import (
    Answers,
    Vocabulary,
    differences,
    first_difference,
    largest_error,
    load_vocabulary,
)
from support.live_client import Step, bfloat16_step, float32_error, greedy_batch

from vllm_kprune.demo.servers import VllmServer

# A minute on two idle cores, several times that on busy ones.
pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(2400)]

TOKENS = 32
TOKENS_IN_BFLOAT16 = 8  # a CPU without instructions for it takes four times as long


@pytest.fixture(scope="module")
def vocabulary(overlay: Path) -> Vocabulary:
    """What `enko` keeps of Gemma."""
    return load_vocabulary(overlay)


def test_the_prompts_are_sixty_of_four_kinds() -> None:
    assert len(PROMPTS) == len(set(PROMPTS)) == 60
    assert [len(set(kind) & set(FEW)) for kind in KINDS] == [3] * 4


def test_greedy_output_is_that_of_the_original_with_everything_else_masked(
    original: VllmServer, pruned: VllmServer, vocabulary: Vocabulary
) -> None:
    asked = [vocabulary.original(vocabulary.ids(prompt)) for prompt in PROMPTS]
    whole = greedy_batch(original, asked, TOKENS, allowed=vocabulary.kept)
    assert [len(steps) for steps in whole] == [TOKENS] * len(PROMPTS)
    expected = dict(zip(PROMPTS, whole, strict=True))
    errors: list[float] = []

    def go_on(places: dict[str, int]) -> Answers:
        written = {
            prompt: vocabulary.pruned([step.token for step in expected[prompt][:at]])
            for prompt, at in places.items()
        }
        prompts = [[*vocabulary.ids(prompt), *written[prompt]] for prompt in places]
        answers = greedy_batch(pruned, prompts, TOKENS - min(places.values()))
        found = {
            prompt: vocabulary.original_steps(steps[: TOKENS - at])
            for (prompt, at), steps in zip(places.items(), answers, strict=True)
        }
        errors.extend(largest_error(expected[p][at:], found[p]) for p, at in places.items())
        return found

    found = list(differences(expected, go_on))
    assert [one for one in found if not one.is_tie(float32_error)] == []
    assert max(errors) <= 1, "a logit differs by more than rounding"
    assert len({one.prompt for one in found}) <= len(PROMPTS) // 2, found
    print(f"law 4: {len(found)} numerical ties, largest error {max(errors):.2f}")  # noqa: T201


def test_so_it_is_in_the_bfloat16_of_the_checkpoint(
    reference_model: Path, overlay: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    prompts = [vocabulary.ids(prompt) for prompt in FEW]
    originals = [vocabulary.original(ids) for ids in prompts]
    shared: dict[str, Any] = {
        "tokens": TOKENS_IN_BFLOAT16,
        "logprobs": 2,
        # The engine warms up on the most tokens and requests that it allows: no more than these.
        "options": {
            "dtype": "bfloat16",
            "logprobs_mode": "processed_logits",
            "max_num_batched_tokens": 256,
            "max_num_seqs": len(FEW),
        },
    }
    jobs: list[dict[str, Any]] = [
        {"model": str(reference_model), "prompts": originals, "allowed": vocabulary.kept, **shared},
        {"model": str(overlay), "prompts": prompts, **shared},
    ]
    whole, pruned = map(_steps, ask("offline_jobs.py", jobs, tmp_path))
    pairs = zip(FEW, whole, map(vocabulary.original_steps, pruned), strict=True)
    found = [first_difference(prompt, 0, one, other) for prompt, one, other in pairs]
    unexplained = [one for one in found if one and not one.is_tie(bfloat16_step)]
    assert unexplained == []
    assert found.count(None) >= len(FEW) // 2, found


def _steps(answer: dict[str, Any]) -> list[list[Step]]:
    assert "error" not in answer, answer
    return [
        [
            Step(token, {int(i): value for i, value in best.items()})
            for token, best in zip(ids, steps, strict=True)
        ]
        for ids, steps in zip(answer["ids"], answer["best"], strict=True)
    ]
