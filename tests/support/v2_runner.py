"""The part of vLLM's V2 model runner that guards depend on, with vLLM's own classes and kernels.

What `gpu_model_runner` does between two forward passes, in its order: slots for requests, inputs of
a step, sampling, what is committed. There is no model: whoever steps gives the logits. Sampling on
several devices, LoRA and multimodal inputs are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import (
    InputBatch,
    InputBuffers,
    combine_sampled_and_draft_tokens,
    expand_idx_mapping,
    post_update,
    prepare_pos_seq_lens,
    prepare_prefill_inputs,
)
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.loader import build_custom_logits_processors
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler
from vllm.v1.worker.gpu.states import RequestState

__all__ = ["Committed", "Scheduled", "V2Runner"]

_DEVICE = torch.device("cpu")
_MOST_TOKENS = 512


@dataclass(frozen=True)
class Scheduled:
    """A request's share of a step: so many tokens of its text, and then these drafts."""

    name: str
    num_tokens: int
    drafts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Committed:
    """What a request got from a step.

    `tokens` were sampled; of `num_computed` tokens the model has been fed for good. `before` and
    `after` are the logits of these tokens' rows where the guard got them and where it gave them
    back, [tokens, vocabulary], or None where no processor had anything to do.
    """

    name: str
    tokens: tuple[int, ...]
    num_computed: int
    before: torch.Tensor | None
    after: torch.Tensor | None


class _Tap(LogitsProcessor):
    """Keeps a copy of the logits that pass here."""

    def __init__(self) -> None:
        self.seen: torch.Tensor | None = None

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        return False

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        self.seen = logits.clone()
        return logits


class V2Runner:
    """Request slots, a sampler with the engine's own logits processors, and steps."""

    def __init__(
        self, config: Any, *, num_slots: int, length: int, num_rows: int, draft_logits: bool = False
    ) -> None:
        spec = config.speculative_config
        self.num_drafts = spec.num_speculative_tokens if spec else 0
        self.num_rows = num_rows
        self.states = RequestState(
            max_num_reqs=num_slots,
            max_model_len=length,
            max_num_batched_tokens=_MOST_TOKENS,
            num_speculative_steps=self.num_drafts,
            vocab_size=num_rows,
            device=_DEVICE,
        )
        custom = build_custom_logits_processors(
            config, self.states, False, config.model_config.logits_processors
        )
        self._before, self._after = _Tap(), _Tap()
        self._sampler = Sampler(
            config,
            num_slots,
            num_rows,
            _DEVICE,
            self.states,
            num_speculative_tokens=self.num_drafts + 1,
            custom_logits_processors=[self._before, *custom, self._after],
        )
        self._rejection = RejectionSampler(self._sampler, spec, _DEVICE) if spec else None
        self._buffers = InputBuffers(num_slots, _MOST_TOKENS, _DEVICE)
        # As a draft model leaves them: a row of logits for each draft of each slot.
        self._draft_logits = (
            torch.randn(num_slots, self.num_drafts, num_rows) if draft_logits else None
        )

    @property
    def has_free_slot(self) -> bool:
        """May another request enter?"""
        return bool(self.states.free_indices)

    def enter(self, name: str, prompt: Sequence[int], answer: Sequence[int], params: Any) -> None:
        """A new request, or one that was preempted after `answer`."""
        text = [*prompt, *answer]
        self.states.add_request(
            req_id=name,
            prompt_len=len(prompt),
            all_token_ids=text,
            num_computed_tokens=0,
            max_tokens=self.states.max_model_len - len(prompt),
        )
        self._sampler.add_request(self._slot(name), params)

    def leave(self, name: str) -> None:
        """A request ends, or is preempted; its slot is free for another."""
        self.states.remove_request(name)

    def set_drafts(self, name: str, drafts: Sequence[int]) -> None:
        """What a draft model proposes after a request's last token."""
        if drafts:
            row = self.states.draft_tokens[self._slot(name)]
            row[: len(drafts)] = torch.tensor(drafts)

    def profile(self, num_reqs: int) -> None:
        """`_dummy_sampler_run`: sample for slots that no request has."""
        batch = InputBatch.make_dummy(num_reqs, num_reqs, self._buffers)
        self._sampler(torch.randn(num_reqs, self.num_rows), batch)

    def step(
        self, batch: Sequence[Scheduled], logits_of: Callable[[Scheduled], torch.Tensor]
    ) -> list[Committed]:
        """One step; `logits_of` gives the rows of a request, [1 + drafts, vocabulary]."""
        self.states.apply_staged_writes()
        self._sampler.apply_staged_writes()
        inputs = self._inputs(batch)
        self._before.seen = self._after.seen = None
        logits = torch.cat([logits_of(one) for one in batch])
        if inputs.num_draft_tokens and self._rejection is not None:
            output = self._rejection(logits, inputs, self._draft_logits)
        else:
            output = self._sampler(logits, inputs)
        self._post_update(inputs, output)
        return self._committed(batch, inputs, output)

    def _slot(self, name: str) -> int:
        return self.states.req_id_to_index[name]

    def _inputs(self, batch: Sequence[Scheduled]) -> InputBatch:
        states, buffers = self.states, self._buffers
        num_reqs, num_tokens = len(batch), sum(one.num_tokens for one in batch)
        # Fills the many fields of other features, each release its own.
        dummy = InputBatch.make_dummy(num_reqs, num_tokens, buffers)
        slots = np.array([self._slot(one.name) for one in batch], np.intp)
        mapping = torch.from_numpy(slots).to(dummy.idx_mapping.dtype)
        starts_np, starts = _running([one.num_tokens for one in batch])
        rows_np, rows = _running([1 + len(one.drafts) for one in batch])
        num_drafts = int(rows_np[-1]) - num_reqs
        expanded, local = mapping, torch.zeros(num_reqs, dtype=torch.int32)
        if num_drafts:
            expanded, local = expand_idx_mapping(
                mapping, int(rows_np[-1]), rows, self.num_drafts + 1
            )
        computed = states.num_computed_tokens.gpu
        prepare_prefill_inputs(
            buffers.input_ids,
            states.next_prefill_tokens,
            mapping,
            starts,
            states.all_token_ids.gpu,
            states.prefill_len.gpu,
            computed,
        )
        prepare_pos_seq_lens(mapping, starts, computed, buffers.positions, buffers.seq_lens)
        indices = combine_sampled_and_draft_tokens(
            buffers.input_ids,
            mapping,
            states.last_sampled_tokens,
            starts,
            buffers.seq_lens[:num_reqs],
            states.prefill_len.gpu,
            # Without drafts the tensor has no columns, and a kernel takes no size of 0.
            states.draft_tokens if self.num_drafts else torch.zeros(1, 1, dtype=torch.int64),
            rows,
            int(rows_np[-1]),
        )
        return replace(
            dummy,
            req_ids=[one.name for one in batch],
            idx_mapping=mapping,
            idx_mapping_np=slots,
            expanded_idx_mapping=expanded,
            expanded_local_pos=local,
            num_scheduled_tokens=np.diff(starts_np),
            num_draft_tokens=num_drafts,
            query_start_loc=starts,
            query_start_loc_np=starts_np,
            logits_indices=indices,
            cu_num_logits=rows,
            cu_num_logits_np=rows_np,
            seq_lens_cpu_upper_bound=buffers.seq_lens[:num_reqs].clone(),
        )

    def _post_update(self, inputs: InputBatch, output: Any) -> None:
        states = self.states
        post_update(
            inputs.idx_mapping,
            states.num_computed_tokens.gpu,
            states.last_sampled_tokens,
            self._sampler.penalties_state.output_bin_counts,
            output.sampled_token_ids,
            output.num_sampled,
            output.num_rejected,
            inputs.query_start_loc,
            states.all_token_ids.gpu,
            states.total_len.gpu,
        )

    def _committed(
        self, batch: Sequence[Scheduled], inputs: InputBatch, output: Any
    ) -> list[Committed]:
        found = []
        for n, one in enumerate(batch):
            first, sampled = int(inputs.cu_num_logits_np[n]), int(output.num_sampled[n])
            rows = slice(first, first + sampled)
            found.append(
                Committed(
                    one.name,
                    tuple(output.sampled_token_ids[n, :sampled].tolist()),
                    one.num_tokens - int(output.num_rejected[n]),
                    None if self._before.seen is None else self._before.seen[rows],
                    None if self._after.seen is None else self._after.seen[rows],
                )
            )
        return found


def _running(sizes: Sequence[int]) -> tuple[np.ndarray, torch.Tensor]:
    """Where each share begins and the last one ends, for the host and for kernels."""
    sums = np.zeros(len(sizes) + 1, np.int32)
    np.cumsum(sizes, out=sums[1:])
    return sums, torch.from_numpy(sums.copy())


def speculative_config(num_drafts: int, method: str) -> Any:
    """The part of a `SpeculativeConfig` that is read here; None without drafts."""
    if not num_drafts:
        return None
    return SimpleNamespace(
        num_speculative_tokens=num_drafts,
        rejection_sample_method=method,
        enable_adaptive_verification=False,
        synthetic_acceptance_rates=None,
        fly_window_size=None,
        fly_entropy_threshold=None,
        fly_entropy_top_k=None,
    )
