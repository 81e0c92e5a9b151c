"""What `test_law4` compares with, on made-up answers: every difference is found, ties are told."""

from support.law4_steps import Answers, differences, largest_error
from support.live_client import Step, bfloat16_step, float32_error

EXPECTED = [Step(1, {1: 9.0, 2: 8.0}), Step(2, {2: 9.0, 3: 9.0}), Step(4, {4: 9.0, 5: 8.96875})]


def test_after_a_difference_the_comparison_goes_on_from_the_originals_text() -> None:
    asked = []

    def go_on(places: dict[str, int]) -> Answers:
        asked.append(places)
        rest = {0: [EXPECTED[0], Step(3, {}), Step(7, {})], 2: [Step(5, {})]}
        return {prompt: rest[at] for prompt, at in places.items()}

    found = list(differences({"a": EXPECTED}, go_on))
    assert asked == [{"a": 0}, {"a": 2}]
    assert [(one.position, one.pruned.token) for one in found] == [(1, 3), (2, 5)]
    assert [one.is_tie(float32_error) for one in found] == [True, False]
    assert [one.is_tie(bfloat16_step) for one in found] == [True, True]


def test_a_token_that_is_not_one_of_the_two_best_is_no_tie() -> None:
    (found,) = differences({"a": EXPECTED[:1]}, lambda places: {"a": [Step(3, {})]})
    assert not found.is_tie(bfloat16_step)


def test_equal_answers_have_no_difference() -> None:
    assert list(differences({"a": EXPECTED}, lambda places: {"a": EXPECTED})) == []


def test_the_largest_error_is_of_the_logits_before_the_first_difference() -> None:
    near = Step(1, {1: 9.0 + 0.5 * float32_error(9.0), 2: 8.0})
    apart = [Step(3, {3: 9.0, 2: 1.0}), Step(4, {4: 100.0})]
    assert 0.4 < largest_error(EXPECTED[:1], [near]) < 0.6
    assert largest_error(EXPECTED, [near, *apart]) > 1
    assert largest_error(EXPECTED[:2], [Step(3, {}), apart[1]]) == 0
