"""Tables of automatons in one tensor: each is whole where it says, and places are used again."""

import logging
import random
from dataclasses import replace

import pytest
import torch
from support.guard_engines import NUM_ROWS, Engine, spellings

from vllm_kprune.guard.automaton import Automaton, build_automaton
from vllm_kprune.guard.policy import parse_policy

pytestmark = pytest.mark.usefixtures("vllm_ready")

CPU = torch.device("cpu")
POLICIES = ("ko,en", "ko", "ja", "zh", "ru", "hi", "th", "ar", "el", "he")


@pytest.fixture
def automata(engine: Engine) -> list[Automaton]:
    """Automatons of different sizes."""
    return [
        build_automaton(spellings(engine.folder), parse_policy({"languages": one}), NUM_ROWS)
        for one in POLICIES
    ]


def test_all_automatons_are_whole_whatever_came_and_went(automata: list[Automaton]) -> None:
    from vllm_kprune.serving.guard.tables import AutomatonTables

    tables, draw, kept = AutomatonTables(CPU, NUM_ROWS, policies=4), random.Random(0), set()
    size = len(tables.tensor)
    for _ in range(300):
        one = draw.choice(automata)
        if one in kept:
            tables.forget(one)
            kept.remove(one)
        elif len(kept) < 4:
            kept.add(one)
        for automaton in kept:
            at = tables.offset(automaton)
            assert at % 8 == 0  # GPUs read 16 bytes at a time
            expected = torch.cat(
                [
                    automaton.token_class,
                    automaton.class_fallback,
                    automaton.class_next.flatten(),
                ]
            )
            assert torch.equal(tables.tensor[at : at + len(expected)], expected)
    assert len(tables.tensor) == size


def test_more_policies_at_once_than_there_is_room_for_make_room(
    automata: list[Automaton], caplog: pytest.LogCaptureFixture
) -> None:
    from vllm_kprune.serving.guard.tables import AutomatonTables

    tables = AutomatonTables(CPU, NUM_ROWS, policies=1)
    size, offsets = len(tables.tensor), list[int]()
    with caplog.at_level(logging.WARNING):
        while len(tables.tensor) == size:
            automata.append(replace(automata[0]))
            offsets.append(tables.offset(automata[-1]))
    added = automata[-len(offsets) :]
    assert offsets == [tables.offset(automaton) for automaton in added]
    for at, automaton in zip(offsets, added, strict=True):
        assert torch.equal(tables.tensor[at : at + NUM_ROWS], automaton.token_class)
    assert "policies are in use at once" in caplog.text
