"""The V2 runner's side of the logits processor interface, without the runner.

Tokens are written to the slot's row when they are committed; drafts are in `input_ids` only.
"""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from support.guard_engines import NUM_ROWS, Engine, expected_refusals, sampling_params
from vllm_kprune.serving.guard.live import slots_of

__all__ = ["LENGTH", "SLOTS", "Runner", "pick"]

SLOTS, LENGTH = 4, 128


class Runner:
    """The V2 runner's request slots, and a guard that reads them."""

    def __init__(self, engine: Engine, drafts: int = 0) -> None:
        from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcRequestState

        from vllm_kprune.serving.guard.processor import LanguageGuard

        self.engine = engine
        self.texts: dict[int, list[int]] = {}
        self.request_options: dict[int, Any] = {}
        self.states: Any = LogitsProcRequestState(
            device=torch.device("cpu"),
            max_num_reqs=SLOTS,
            vocab_size=NUM_ROWS,
            all_token_ids=SimpleNamespace(gpu=torch.zeros((SLOTS, LENGTH), dtype=torch.int32)),
            prompt_len=SimpleNamespace(np=np.zeros(SLOTS, np.int32)),
            prefill_len=SimpleNamespace(np=np.zeros(SLOTS, np.int32)),
            total_len=SimpleNamespace(gpu=torch.zeros(SLOTS, dtype=torch.int32)),
        )
        config = engine.config
        if drafts:
            config.speculative_config = SimpleNamespace(num_speculative_tokens=drafts)
        self.guard = LanguageGuard(config, self.states)

    def enter(
        self,
        slot: int,
        text: list[int],
        prompt_len: int,
        request_options: Any,
        staged: bool = False,
        **options: Any,
    ) -> bool:
        """A request with `text` so far: its prompt, and what it had when it was preempted."""
        params = sampling_params(extra_args=request_options, **options)
        params.update_from_generation_config({}, self.engine.eos)
        self.texts[slot], self.request_options[slot] = list(text), request_options
        if not staged:
            self.states.all_token_ids.gpu[slot, : len(text)] = torch.tensor(text)
        self.states.prompt_len.np[slot], self.states.prefill_len.np[slot] = prompt_len, len(text)
        self.states.total_len.gpu[slot] = len(text)
        return self.guard.add_request(slot, params)

    def leave(self, slot: int) -> None:
        """A request ends or is preempted."""
        del self.texts[slot], self.request_options[slot]
        slots_of(self.states.all_token_ids).remove_request(slot)

    def commit(self, slot: int, tokens: list[int]) -> None:
        begin = len(self.texts[slot])
        self.texts[slot] += tokens
        self.states.all_token_ids.gpu[slot, begin : begin + len(tokens)] = torch.tensor(tokens)
        self.states.total_len.gpu[slot] = len(self.texts[slot])

    def step(self, order: list[int], drafts: dict[int, list[int]] | None = None) -> torch.Tensor:
        """Logits after the guard, one row for each slot in `order` and for each of its drafts."""
        self.guard.apply_staged_writes()
        rows = [
            (slot, position, [*self.texts[slot][-1:], *(drafts or {}).get(slot, [])][position])
            for slot in order
            for position in range(1 + len((drafts or {}).get(slot, [])))
        ]
        slots, local, tokens = map(list, zip(*rows, strict=True))
        context = SimpleNamespace(
            expanded_idx_mapping=torch.tensor(slots, dtype=torch.int32),
            idx_mapping=torch.tensor(order, dtype=torch.int32),
            idx_mapping_np=np.array(order, np.int32),
            expanded_local_pos=torch.tensor(local, dtype=torch.int32),
            input_ids=torch.tensor(tokens, dtype=torch.int32),
            pos=torch.tensor(
                [len(self.texts[s]) - 1 + p for s, p in zip(slots, local, strict=True)]
            ),
            seq_lens_upper_bound_np=np.array([len(self.texts[s]) for s in order]),
        )
        logits = torch.arange(NUM_ROWS, dtype=torch.float32).repeat(len(rows), 1)
        return self.guard.apply(logits, context)

    def check(self, order: list[int], drafts: dict[int, list[int]] | None = None) -> torch.Tensor:
        """Every row has lost exactly what its own text, drafts included, refuses."""
        logits, row = self.step(order, drafts), 0
        for slot in order:
            added = (drafts or {}).get(slot, [])
            for end in range(len(added) + 1):
                text = [*self.texts[slot], *added[:end]]
                refused = expected_refusals(self.engine, self.request_options[slot], text)
                assert torch.equal(logits[row] == -torch.inf, refused), (slot, text)
                row += 1
        return logits


def pick(engine: Engine, row: torch.Tensor, draw: random.Random) -> int:
    """A token that is left, often a part of a character."""
    fragments = set(engine.ids("가힣漢あ😀é"))
    left = torch.nonzero(row > -torch.inf).flatten().tolist()
    parts = [token for token in left if token in fragments]
    return draw.choice(parts if parts and draw.random() < 0.7 else left)
