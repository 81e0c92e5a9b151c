"""What the device knows of a guarded request: a row of 64-bit numbers for each slot."""

from enum import IntFlag

__all__ = ["FIELDS", "NO_REASONING", "UNGUARDED", "Flag"]

# `tables`: where the automaton's begin in `AutomatonTables`, UNGUARDED in a slot without a guard.
# `answer` and `reasoning`: the numbers of labels, `NOT_COUNTED` for what does not count. `state`
# belongs to the moment when `taken` tokens of the text had been read.
FIELDS = (
    *("tables", "num_classes", "first_reasoning"),
    *("answer", "reasoning", "end", "flags"),
    *("prefill", "state", "taken"),
)
UNGUARDED = -1
# States are 16 bits wide: no state is this large.
NO_REASONING = 1 << 16


class Flag(IntFlag):
    """`steps.SlotEntry` has the first two; ENDED: the answer has; DEAD: a dead end was counted."""

    CONSTRAINED = 1
    STOPS = 2
    ENDED = 4
    DEAD = 8
