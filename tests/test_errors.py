"""The hint in "unknown …" errors names the nearest known name."""

import pytest

from vllm_kprune.errors import KPruneError, nearest


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("enk", ["enko", "enkozh"], "did you mean 'enko'? (known: enko, enkozh)"),
        ("qqq", ["b", "a"], "known: a, b"),
        ("", ["a"], "known: a"),
        ("a", [], "known: "),
    ],
)
def test_the_nearest_name_is_suggested_where_one_is_near(
    name: str, known: list[str], hint: str
) -> None:
    assert nearest(name, known) == hint


def test_a_mistake_of_the_user_is_a_value_error() -> None:
    assert issubclass(KPruneError, ValueError)
