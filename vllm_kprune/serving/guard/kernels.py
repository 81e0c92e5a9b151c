"""The guard's Triton kernels for the V2 runner; `device_steps` launches them.

`steps` says in plain words what a step does. Here a program has a row of the logits, or a block of
one. A request's rows are neighbours: the first of them follows the committed tokens, the others a
draft each. Offsets into logits are 64 bits wide: rows times vocabulary can be more than 2 ** 31.
"""

# mypy: disallow-incomplete-defs=False

from vllm.triton_utils import HAS_TRITON, tl, triton

from vllm_kprune.serving.guard.slot_fields import FIELDS, Flag

__all__ = ["advance_rows", "refuse_tokens", "settle_rows", "settle_slots", "withdraw_tokens"]

# A kernel sees no other global names. Where there is no Triton, nothing here runs.
_constant = tl.constexpr if HAS_TRITON else int

_WIDTH = _constant(len(FIELDS))
_TABLES = _constant(FIELDS.index("tables"))
_CLASSES = _constant(FIELDS.index("num_classes"))
_FIRST_REASONING = _constant(FIELDS.index("first_reasoning"))
_ANSWER = _constant(FIELDS.index("answer"))
_REASONING = _constant(FIELDS.index("reasoning"))
_END = _constant(FIELDS.index("end"))
_FLAGS = _constant(FIELDS.index("flags"))
_PREFILL = _constant(FIELDS.index("prefill"))
_STATE = _constant(FIELDS.index("state"))
_TAKEN = _constant(FIELDS.index("taken"))

_CONSTRAINED = _constant(int(Flag.CONSTRAINED))
_STOPS = _constant(int(Flag.STOPS))
_ENDED = _constant(int(Flag.ENDED))
_DEAD = _constant(int(Flag.DEAD))

# What happened in a row, as it waits for its token to be committed.
_CHANGED_HERE = _constant(1)
_DEAD_HERE = _constant(2)
_IN_REASONING = _constant(4)

# A row's number: its slot from bit 32 on, then how it counts, then its state in 16 bits. How it
# counts: 0 not at all, 1 at once, n + 1 as the n-th draft. -1: the row is not guarded.
_SLOT_BIT = _constant(32)
_COUNTS_BIT = _constant(16)
_16_BITS = _constant(0xFFFF)


@triton.jit
def _field(slots, slot, which):
    return tl.load(slots + slot * _WIDTH + which)


@triton.jit
def _following(numbers, tables, classes, num_rows, state, token):
    """The state after a token, or -1 if it is refused, and where a refused token leads."""
    number = tl.load(numbers + tables + token).to(tl.int32)
    following = tl.load(numbers + tables + num_rows + classes + state * classes + number)
    return following.to(tl.int32), number


@triton.jit
def _advance(numbers, tables, classes, num_rows, state, token):
    """As `Automaton.advance`."""
    known = (token >= 0) & (token < num_rows)
    token = tl.where(known, token, 0)
    following, number = _following(numbers, tables, classes, num_rows, state, token)
    fallback = tl.load(numbers + tables + num_rows + number).to(tl.int32)
    return tl.where(known, tl.where(following < 0, fallback, following), 0)


@triton.jit
def _count(totals, num_labels, slots, slot, happened, flags):
    """Add what happened in a committed row. Returns the slot's flags: a dead end counts once."""
    answer = _field(slots, slot, _ANSWER)
    reasoning = _field(slots, slot, _REASONING)
    label = tl.where((happened & _IN_REASONING) != 0, reasoning, answer)
    changed = ((happened & _CHANGED_HERE) != 0) & (label >= 0)
    tl.atomic_add(totals + label, 1, mask=changed)
    is_dead = (happened & _DEAD_HERE) != 0
    # Reasoning without a guard has no label of its own.
    label = tl.where(label >= 0, label, answer)
    is_first = is_dead & ((flags & _DEAD) == 0) & (label >= 0)
    tl.atomic_add(totals + num_labels + label, 1, mask=is_first)
    return tl.where(is_dead, flags | _DEAD, flags)


@triton.jit
def _settle(totals, num_labels, slots, slot, waiting, num_drafts, committed, flags):
    """Count the drafts that were accepted: one less than the tokens committed since."""
    for draft in range(1, num_drafts + 1):
        at = waiting + slot * num_drafts + draft - 1
        if draft < committed:
            flags = _count(totals, num_labels, slots, slot, tl.load(at).to(tl.int64), flags)
        tl.store(at, 0)
    return flags


@triton.jit(do_not_specialize=["num_labels", "num_drafts"])
def settle_slots(slots, waiting, total_len, totals, num_labels, num_drafts):
    """Count the drafts of every slot that wait for it, from the length of the text alone."""
    slot = tl.program_id(0).to(tl.int64)
    if _field(slots, slot, _TABLES) >= 0:
        committed = tl.load(total_len + slot).to(tl.int64) - _field(slots, slot, _TAKEN)
        flags = _field(slots, slot, _FLAGS)
        flags = _settle(totals, num_labels, slots, slot, waiting, num_drafts, committed, flags)
        tl.store(slots + slot * _WIDTH + _FLAGS, flags)


@triton.jit(do_not_specialize=["num_labels", "num_drafts", "num_logits", "stride"])
def advance_rows(
    rows,
    slots,
    waiting,
    numbers,
    totals,
    num_labels,
    num_drafts,
    row_slots,
    row_locals,
    row_positions,
    row_tokens,
    num_logits,
    texts,
    stride,
    num_rows,
):
    """Write every row's number. The program of a request's first row does it for all of them."""
    row = tl.program_id(0)
    slot = tl.load(row_slots + row).to(tl.int64)
    tables = _field(slots, slot, _TABLES)
    if tables < 0:
        tl.store(rows + row, -1)
    elif tl.load(row_locals + row) == 0:
        classes = _field(slots, slot, _CLASSES).to(tl.int32)
        end = _field(slots, slot, _END)
        flags = _field(slots, slot, _FLAGS)
        state = _field(slots, slot, _STATE).to(tl.int32)
        taken = _field(slots, slot, _TAKEN).to(tl.int32)
        visible = tl.load(row_positions + row).to(tl.int32) + 1
        committed = visible - taken
        flags = _settle(totals, num_labels, slots, slot, waiting, num_drafts, committed, flags)
        for at in range(taken, visible):
            # The last one is what the row was fed; the text itself may be in the host's memory.
            if at == visible - 1:
                token = tl.load(row_tokens + row).to(tl.int64)
            else:
                token = tl.load(texts + slot * stride + at).to(tl.int64)
            state = _advance(numbers, tables, classes, num_rows, state, token)
            stopped = (token == end) & ((flags & _STOPS) != 0)
            flags = tl.where(stopped, flags | _ENDED, flags)
        tl.store(slots + slot * _WIDTH + _STATE, state.to(tl.int64))
        tl.store(slots + slot * _WIDTH + _TAKEN, tl.maximum(taken, visible).to(tl.int64))
        tl.store(slots + slot * _WIDTH + _FLAGS, flags)

        # Rows before the end of a prompt are sampled too, and thrown away. So is what follows the
        # end of an answer.
        counts = (visible >= _field(slots, slot, _PREFILL)) & ((flags & _ENDED) == 0)
        slot_bits = slot << _SLOT_BIT
        tl.store(rows + row, slot_bits | (counts.to(tl.int64) << _COUNTS_BIT) | state)
        for draft in range(1, num_drafts + 1):
            at = row + draft
            here = at < num_logits
            here = here & (tl.load(row_slots + at, mask=here, other=-1) == slot)
            here = here & (tl.load(row_locals + at, mask=here, other=0) == draft)
            if here:
                token = tl.load(row_tokens + at).to(tl.int64)
                state = _advance(numbers, tables, classes, num_rows, state, token)
                counts = counts & ((token != end) | ((flags & _STOPS) == 0))
                how = tl.where(counts, draft + 1, 0).to(tl.int64)
                tl.store(rows + at, slot_bits | (how << _COUNTS_BIT) | state)


@triton.jit(do_not_specialize=["num_blocks"])
def refuse_tokens(
    logits, stride, column_stride, rows, slots, numbers, largest, num_blocks, num_rows,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write -inf to a block of a row, and its largest logits, before and after, to `largest`."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    about = tl.load(rows + row)
    if about >= 0:
        slot = about >> _SLOT_BIT
        state = (about & _16_BITS).to(tl.int32)
        tables = tl.multiple_of(_field(slots, slot, _TABLES), 8)
        classes = _field(slots, slot, _CLASSES).to(tl.int32)
        columns = block * BLOCK + tl.arange(0, BLOCK)
        inside = columns < num_rows
        number = tl.load(numbers + tables + columns, mask=inside, other=0).to(tl.int32)
        following = tl.load(numbers + tables + num_rows + classes + state * classes + number)
        refused = inside & (following < 0)
        at = logits + row * stride + columns * column_stride
        before = tl.load(at, mask=inside, other=float("-inf"))
        after = tl.where(refused, float("-inf"), before)
        # All of them: refused tokens are everywhere, and whole vectors are faster than parts.
        tl.store(at, after, mask=inside)
        both = largest + (row * num_blocks + block) * 2
        tl.store(both, tl.max(before, axis=0))
        tl.store(both + 1, tl.max(after, axis=0))


@triton.jit(do_not_specialize=["num_blocks", "num_labels", "num_drafts"])
def settle_rows(
    logits, stride, column_stride, rows, slots, waiting, largest, num_blocks, totals, num_labels,
    num_drafts, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Count a row or let it wait, and give it its end token if it has no other left."""
    row = tl.program_id(0).to(tl.int64)
    about = tl.load(rows + row)
    if about >= 0:
        slot = about >> _SLOT_BIT
        counts = (about >> _COUNTS_BIT) & _16_BITS
        state = about & _16_BITS
        blocks = tl.arange(0, BLOCKS)
        both = largest + (row * num_blocks + blocks) * 2
        inside = blocks < num_blocks
        before = tl.max(tl.load(both, mask=inside, other=float("-inf")), axis=0)
        after = tl.max(tl.load(both + 1, mask=inside, other=float("-inf")), axis=0)
        flags = _field(slots, slot, _FLAGS)
        is_dead = (after == float("-inf")) & ((flags & _CONSTRAINED) != 0)
        if is_dead:
            tl.store(logits + row * stride + _field(slots, slot, _END) * column_stride, 0.0)
        # The largest logit fell: so the most likely token was refused. On a tie with an allowed
        # token it did not fall, and nothing changed.
        happened = tl.where(after < before, _CHANGED_HERE, 0) | tl.where(is_dead, _DEAD_HERE, 0)
        if (happened != 0) & (counts != 0):
            first = _field(slots, slot, _FIRST_REASONING)
            happened |= tl.where(state >= first, _IN_REASONING, 0)
            if counts == 1:
                flags = _count(totals, num_labels, slots, slot, happened.to(tl.int64), flags)
                tl.store(slots + slot * _WIDTH + _FLAGS, flags)
            else:
                at = waiting + slot * num_drafts + counts - 2
                tl.store(at, happened.to(tl.int8))


@triton.jit(do_not_specialize=["num_tokens"])
def withdraw_tokens(
    logits, stride, column_stride, rows, slots, numbers, tokens, num_tokens, num_rows
):
    """Inside of a character, refuse again what was forced after the guard."""
    row = tl.program_id(0).to(tl.int64)
    about = tl.load(rows + row)
    if about >= 0:
        slot = about >> _SLOT_BIT
        state = (about & _16_BITS).to(tl.int32)
        tables = _field(slots, slot, _TABLES)
        classes = _field(slots, slot, _CLASSES).to(tl.int32)
        end = _field(slots, slot, _END)
        following, _number = _following(numbers, tables, classes, num_rows, state, end)
        if following < 0:
            for n in range(num_tokens):
                token = tl.load(tokens + n).to(tl.int64)
                following, _number = _following(numbers, tables, classes, num_rows, state, token)
                if following < 0:
                    tl.store(logits + row * stride + token * column_stride, float("-inf"))
