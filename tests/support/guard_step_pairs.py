"""Random batches through the guard's kernels and through its reference, side by side.

Run as a script under `TRITON_INTERPRET=1`: `guard_step_pairs.py FOLDER STEPS`. Prints what the
batches contained, so that a test can see that they were not harmless.
"""

import json
import random
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.triton_interpreter import use_interpreter

if __name__ == "__main__":
    use_interpreter()

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support.guard_engines import NUM_ROWS, PROMPTS, Engine, make_engine, spellings
from vllm_kprune.guard.automaton import Automaton, build_automaton
from vllm_kprune.guard.phases import ReasoningTokens, build_phases
from vllm_kprune.guard.policy import parse_policy
from vllm_kprune.serving.guard import device_steps, kernels
from vllm_kprune.serving.guard.counters import CounterFile
from vllm_kprune.serving.guard.device_steps import DeviceSteps
from vllm_kprune.serving.guard.steps import HostSteps, SlotEntry
from vllm_kprune.serving.guard.tally import NOT_COUNTED, Tally

SLOTS, LENGTH, LABELS = 5, 160, 6
POLICIES = (
    {"languages": "ko,en"},
    {"languages": "ko", "hanja": "all"},
    {"scripts": "Hiragana,Han"},
)
CPU = torch.device("cpu")


@dataclass
class Request:
    """A request in a slot; `entry` is None if it has no guard."""

    text: list[int]
    computed: int
    entry: SlotEntry | None
    drafts: list[int] = field(default_factory=list)
    visible: int = 0


class Pair:
    """Kernels and reference for one engine, and the slots that both read."""

    def __init__(self, engine: Engine, num_drafts: int, seed: int) -> None:
        self.engine, self.num_drafts = engine, num_drafts
        self.draw = random.Random(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.states = SimpleNamespace(
            device=CPU,
            max_num_reqs=SLOTS,
            vocab_size=NUM_ROWS,
            all_token_ids=SimpleNamespace(gpu=torch.zeros((SLOTS, LENGTH), dtype=torch.int32)),
            total_len=SimpleNamespace(gpu=torch.zeros(SLOTS, dtype=torch.int32)),
        )
        self.tallies = [Tally(CounterFile(None), CPU) for _ in range(2)]
        self.steps = [
            HostSteps(self.states, self.tallies[0]),
            DeviceSteps(self.states, self.tallies[1], num_drafts),
        ]
        self.automata = [_automaton(engine, n) for n in range(len(POLICIES))]
        self.requests: dict[int, Request] = {}
        self.seen: Counter[str] = Counter()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.leave()
            self.enter()
            if self.requests:
                self.step()
        for slot in list(self.requests):
            self._remove(slot)
        self.compare()

    def leave(self) -> None:
        for slot, request in list(self.requests.items()):
            if len(request.text) > LENGTH - 20 or self.draw.random() < 0.08:
                self._remove(slot)

    def _remove(self, slot: int) -> None:
        if self.requests.pop(slot).entry:
            for one in self.steps:
                one.leave()

    def enter(self) -> None:
        entries, unguarded = [], []
        for slot in set(range(SLOTS)) - set(self.requests):
            if self.draw.random() < 0.6:
                text = self.engine.prompt(*self.draw.choice(PROMPTS))
                entry = self._entry(slot, text) if self.draw.random() < 0.8 else None
                self.requests[slot] = Request(text, 0, entry)
                self._write(slot)
                entries += [entry] if entry else []
                unguarded += [] if entry else [slot]
        for one in self.steps:
            one.enter(entries, unguarded)

    def _entry(self, slot: int, text: list[int]) -> SlotEntry:
        automaton, draw = self.draw.choice(self.automata), self.draw
        labels = [draw.choice((NOT_COUNTED, *range(LABELS))) for _ in range(2)]
        return SlotEntry(
            slot,
            automaton,
            labels=(labels[0], labels[1]),
            end_id=self.engine.eos,
            constrained=draw.random() < 0.5,
            stops=draw.random() < 0.5,
            prefill=len(text),
            state=automaton.state_after(text),
        )

    def step(self) -> None:
        order = self.draw.sample(sorted(self.requests), self.draw.randint(1, len(self.requests)))
        rows = [row for slot in order for row in self._rows(slot)]
        kind = self.draw.choice((torch.int32, torch.int64))
        slots, local, position, tokens = (
            torch.tensor(c, dtype=kind) for c in zip(*rows, strict=True)
        )
        context = SimpleNamespace(
            expanded_idx_mapping=slots, expanded_local_pos=local, pos=position, input_ids=tokens
        )
        # As a slice of wider logits: rows are further apart than they are long.
        logits = torch.randn(len(rows), NUM_ROWS + 24, generator=self.noise)[:, :NUM_ROWS]
        self._leave_few(logits)
        both = [logits, torch.empty(NUM_ROWS, len(rows)).t().copy_(logits)]
        forced = torch.tensor([self.engine.eos, 7], dtype=torch.int32)
        for one, values in zip(self.steps, both, strict=True):
            one.apply(values, context)
        guarded = both[0].clone()
        for one, values in zip(self.steps, both, strict=True):
            values[:, forced] = 1e9
            one.withdraw(values, forced)
        assert torch.equal(*both)
        self.seen["withdrawn"] += int((both[0][:, self.engine.eos] == -torch.inf).sum())
        self.seen["rows"] += len(rows)
        self.compare()
        self._commit(order, guarded)

    def _rows(self, slot: int) -> list[tuple[int, int, int, int]]:
        """A request's rows: slot, place among its rows, position, token fed."""
        request = self.requests[slot]
        if request.computed < len(request.text) - 1:  # a chunk of the prompt, or all of it
            request.visible = self.draw.randint(request.computed + 1, len(request.text))
        else:
            request.visible = len(request.text)
        if request.visible < len(request.text):
            self.seen["chunks"] += 1
        fed = [request.text[request.visible - 1], *request.drafts]
        self.seen["drafts"] += len(request.drafts)
        return [(slot, n, request.visible - 1 + n, token) for n, token in enumerate(fed)]

    def _leave_few(self, logits: torch.Tensor) -> None:
        """What a grammar does: some rows have only a few tokens left."""
        for row in range(len(logits)):
            if self.draw.random() < 0.3:
                kept = [self.draw.randrange(NUM_ROWS) for _ in range(2)]
                left = logits[row, kept].clone()
                logits[row] = -torch.inf
                logits[row, kept] = left

    def _commit(self, order: list[int], logits: torch.Tensor) -> None:
        row = 0
        for slot in order:
            request, draw = self.requests[slot], self.draw
            accepted = draw.randint(0, len(request.drafts))
            here, row = row, row + 1 + len(request.drafts)
            request.computed = request.visible
            if request.visible < len(request.text):
                continue
            left = torch.nonzero(logits[here + accepted] > -torch.inf).flatten().tolist()
            # Now and then what nobody may say, and the end of an answer.
            last = draw.choice([*(draw.choice(left) for _ in range(6) if left), self.engine.eos])
            request.text += [*request.drafts[:accepted], last]
            request.computed = len(request.text) - 1
            self.seen["accepted"] += accepted
            drafts = [self._draft() for _ in range(draw.randint(0, self.num_drafts))]
            request.drafts = drafts[: LENGTH - len(request.text) - 1]
            self._write(slot)

    def _draft(self) -> int:
        fragments = self.engine.ids("가힣あ漢é")
        return self.draw.choice([*fragments, self.engine.eos, self.draw.randrange(NUM_ROWS), -1])

    def _write(self, slot: int) -> None:
        text = self.requests[slot].text
        self.states.all_token_ids.gpu[slot, : len(text)] = torch.tensor(text)
        self.states.total_len.gpu[slot] = len(text)

    def compare(self) -> None:
        totals = [tally.on_device for tally in self.tallies]
        assert torch.equal(*totals), totals
        self.seen["changed"], self.seen["dead"] = map(int, totals[0].sum(dim=1))


def _automaton(engine: Engine, number: int) -> Automaton:
    policy, known = parse_policy(POLICIES[number]), spellings(engine.folder)
    assert policy
    if number == 0:
        return build_automaton(known, policy, NUM_ROWS, (engine.eos,))
    # No tokenizer here has tokens of its own for reasoning; any two will do.
    tokens = ReasoningTokens(start=5, end=6)
    other = parse_policy(POLICIES[0]) if number == 1 else None
    return build_phases(known, policy, other, tokens, NUM_ROWS, (engine.eos,))


class _Kernels:
    """In place of the kernels' module: notes each launch, and runs nothing."""

    def __init__(self, launched: list[str]) -> None:
        self._launched = launched

    def __getattr__(self, name: str) -> Any:
        self._launched.append(name)
        return defaultdict(lambda: lambda *args, **kwargs: None)  # for any grid


# Views, and what turns an array of the host into a tensor: no work for a device.
_FREE = ("aten.detach", "aten.lift_fresh", "aten.select", "aten.slice")


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := str(func.overloadpacket)) not in _FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def operations(engine: Engine, num_drafts: int) -> dict[str, list[str]]:
    """PyTorch's operations and the kernels of what a step consists of, with three policies."""
    pair, launched = Pair(engine, num_drafts, seed=0), list[str]()
    device_steps.kernels = _Kernels(launched)
    steps, done = pair.steps[1], {}
    entries = [replace(pair._entry(n, [1]), automaton=pair.automata[n]) for n in range(3)]
    rows = torch.zeros(9, dtype=torch.int64)
    context = SimpleNamespace(
        expanded_idx_mapping=rows, expanded_local_pos=rows, pos=rows, input_ids=rows
    )
    logits = torch.zeros(9, NUM_ROWS)
    parts = {
        "new policies enter": lambda: steps.enter(entries, []),
        "known policies enter": lambda: steps.enter(entries, [3]),
        "nobody enters": lambda: steps.enter([], []),
        "step": lambda: steps.apply(logits, context),
        "budget": lambda: steps.withdraw(logits, rows[:1]),
        "leave": steps.leave,
    }
    for name, part in parts.items():
        launched.clear()
        with _Operations() as seen:
            part()
        done[name] = [*seen.names, *launched]
    device_steps.kernels = kernels
    return done


def main() -> None:
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    seen: dict[str, Any] = {}
    for kind in ("byte_level", "byte_fallback"):
        (folder / kind).mkdir()
        engine = make_engine(kind, folder / kind)
        for num_drafts in (0, 1, 3):
            pair = Pair(engine, num_drafts, seed=num_drafts)
            pair.run(steps)
            seen[f"{kind} {num_drafts}"] = dict(pair.seen)
    done = {num_drafts: operations(engine, num_drafts) for num_drafts in (0, 3)}
    sys.stdout.write(json.dumps({"seen": seen, "done": done}))


if __name__ == "__main__":
    main()
