"""The language guard as a vLLM logits processor, for both of its model runners.

One class path goes into `logits_processors` before it is known which runner will load it, so one
class implements both interfaces. What it does on each is in `rows` (V1) and `slots` (V2).
"""

from collections.abc import Sequence
from typing import Any

import torch

from vllm_kprune.guard.mask import TokenMask
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.serving.compat.engine import is_last_stage, tensor_parallel_rank
from vllm_kprune.serving.compat.processors import V1LogitsProcessor, V2LogitsProcessor
from vllm_kprune.serving.counter_files import counter_folder
from vllm_kprune.serving.guard.counters import CounterFile, well_known_labels
from vllm_kprune.serving.guard.live import is_sharded
from vllm_kprune.serving.guard.requests import Guards
from vllm_kprune.serving.guard.rows import GuardedRows
from vllm_kprune.serving.guard.settings import GuardSettings, request_policies
from vllm_kprune.serving.guard.slots import GuardedSlots
from vllm_kprune.serving.guard.tally import Tally
from vllm_kprune.serving.settings import settings_of

__all__ = ["LanguageGuard"]


class LanguageGuard(V1LogitsProcessor, V2LogitsProcessor):
    """Refuses tokens that would produce a character outside a request's scripts."""

    def __init__(
        self,
        vllm_config: Any,
        where: Any,
        is_pin_memory: bool | None = None,
    ) -> None:
        """V1 gives a `torch.device` and `is_pin_memory`, V2 a `LogitsProcRequestState`."""
        self._rows: GuardedRows | None = None
        self._slots: GuardedSlots | None = None
        # vLLM makes processors in every pipeline stage, and only the last one samples. The others
        # need no tables.
        if not is_last_stage():
            return
        # The second argument tells the runners apart; vLLM passes it by position on both.
        device = where if isinstance(where, torch.device) else where.device
        tally = Tally(
            CounterFile(counter_folder(), _expected_labels(vllm_config)),
            device,
            rank=tensor_parallel_rank(),
            is_sharded=is_sharded,
        )
        if isinstance(where, torch.device):
            guards = Guards(vllm_config, vllm_config.model_config.get_vocab_size())
            self._rows = GuardedRows(guards, TokenMask(device), tally, device)
        else:
            # Without speculative decoding the configuration is None, which has no such attribute.
            drafts = getattr(vllm_config.speculative_config, "num_speculative_tokens", 0)
            guards = Guards(vllm_config, where.vocab_size)
            self._slots = GuardedSlots(guards, tally, where, drafts)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """What can be checked without the server's settings; `attach` checks the rest."""
        # Some default, so that an option that only refines the server's policy (`kprune_hanja`
        # alone) passes here: whether there is such a policy is not known to a class method.
        request_policies(GuardSettings(default=GuardPolicy()), sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """V1: it may refuse the most likely token."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: follow a `BatchUpdate`; None if the batch has not changed."""
        if self._rows:
            self._rows.update(batch_update)

    def withdraw(self, logits: torch.Tensor, token_ids: Sequence[int]) -> None:
        """V1: after `apply`, refuse tokens again that were forced inside of characters."""
        if self._rows:
            self._rows.withdraw(logits, token_ids)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: a request enters a slot. True if it is guarded."""
        return self._slots is not None and self._slots.add_request(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """V2: once before each step."""
        if self._slots:
            self._slots.apply_staged_writes()

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Refuse tokens in place. V2 says which rows these are, with a `LogitsContext`."""
        # V1 calls `apply(logits)`, V2 `apply(logits, ctx)`.
        if self._rows:
            return self._rows.apply(logits)
        return self._slots.apply(logits, ctx) if self._slots else logits


def _expected_labels(vllm_config: Any) -> tuple[str, ...]:
    policies = settings_of(vllm_config).guard.policies
    configured = [one.label for one in (policies.answer, policies.reasoning) if one]
    return (*well_known_labels(), *configured)
